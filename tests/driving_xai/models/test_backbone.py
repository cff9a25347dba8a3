"""Where a backbone's weights come from: DINO's files, ours, and files that must not be trusted."""

import json
import logging
import pickle
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from driving_xai.errors import CheckpointError, UnsupportedModelError
from driving_xai.models.actions import ActionConfig, ActionModel
from driving_xai.models.backbone import (
    BackboneConfig,
    architecture_of,
    build_backbone,
    fetched_name,
    load_backbone,
    saved_backbone,
)
from driving_xai.models.forward_trace import removed_after

TINY = BackboneConfig(
    backbone="vit_tiny_patch16_224", embed_dim=24, depth=2, heads=3, patch_px=8, image_size=(32, 32)
)


def trunk_of(config: BackboneConfig = TINY, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    trunk = build_backbone(config).eval()
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return trunk


def outputs(trunk: torch.nn.Module, height: int = 32, width: int = 32) -> torch.Tensor:
    frames = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return trunk.forward_features(frames)


def dino_file(path: Path, *, teacher: torch.nn.Module, student: torch.nn.Module) -> Path:
    """The layout of facebookresearch/dino's checkpoints: backbone and projection head under wrappers."""
    head = {"head.mlp.0.weight": torch.randn(8, 24), "head.last_layer.weight_g": torch.ones(16, 1)}
    torch.save(
        {
            "student": {f"module.backbone.{k}": v for k, v in student.state_dict().items()}
            | {f"module.{k}": v for k, v in head.items()},
            "teacher": {f"backbone.{k}": v for k, v in teacher.state_dict().items()} | head,
            "optimizer": {"state": {}, "param_groups": []},
            "epoch": 3,
            "dino_loss": {"center": torch.zeros(1, 16)},
        },
        path,
    )
    return path


def test_dinos_own_layout_gives_the_teacher(tmp_path) -> None:
    teacher, student, loaded = trunk_of(seed=1), trunk_of(seed=2), trunk_of(seed=3)
    load_backbone(loaded, dino_file(tmp_path / "checkpoint.pth", teacher=teacher, student=student))
    assert torch.equal(outputs(loaded), outputs(teacher))


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
@pytest.mark.parametrize("nested", [None, "student", "state_dict", "model"])
def test_plain_and_wrapped_state_dicts_are_the_same(tmp_path, prefix, nested) -> None:
    source, loaded = trunk_of(seed=1), trunk_of(seed=3)
    weights = {prefix + k: v for k, v in source.state_dict().items()}
    torch.save({nested: weights} if nested else weights, tmp_path / "w.pth")
    load_backbone(loaded, tmp_path / "w.pth")
    assert torch.equal(outputs(loaded), outputs(source))


def test_safetensors_and_the_directory_around_them(tmp_path) -> None:
    source = trunk_of(seed=1)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded = trunk_of(seed=3)
        load_backbone(loaded, path)
        assert torch.equal(outputs(loaded), outputs(source))


def test_dinov2_files_with_registers(tmp_path) -> None:
    """Meta's layout: a position for the class token, a mask token, registers under their own name."""
    config = BackboneConfig(
        backbone="vit_small_patch14_reg4_dinov2", embed_dim=24, depth=2, heads=3, image_size=(28, 28)
    )
    source, loaded = trunk_of(config, seed=1), trunk_of(config, seed=3)
    weights = source.state_dict()
    position = torch.randn(1, 1, 24)
    weights["pos_embed"] = torch.cat([position, weights["pos_embed"]], 1)
    weights["cls_token"] = weights["cls_token"] - position
    weights["register_tokens"] = weights.pop("reg_token")
    weights["mask_token"] = torch.zeros(1, 24)
    torch.save(weights, tmp_path / "dinov2.pth")
    load_backbone(loaded, tmp_path / "dinov2.pth")
    torch.testing.assert_close(outputs(loaded, 28, 42), outputs(source, 28, 42))


def test_positions_of_another_grid_are_interpolated(tmp_path) -> None:
    source, wide = trunk_of(seed=1), BackboneConfig(**{**vars(TINY), "image_size": (32, 64)})
    torch.save(source.state_dict(), tmp_path / "w.pth")
    loaded = trunk_of(wide, seed=3)
    load_backbone(loaded, tmp_path / "w.pth")
    torch.testing.assert_close(outputs(loaded, 32, 64), outputs(source, 32, 64))


def test_a_convolutional_backbone_loads_strictly_too(tmp_path) -> None:
    config = BackboneConfig(backbone="resnet10t")
    source, loaded = trunk_of(config, seed=1), trunk_of(config, seed=3)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load_backbone(loaded, tmp_path / "w.pth")
    assert torch.equal(outputs(loaded, 64, 64), outputs(source, 64, 64))
    with pytest.raises(CheckpointError, match="holds no weights of this network"):
        load_backbone(trunk_of(), tmp_path / "w.pth")


class Boom:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_no_code_of_a_file_is_run(tmp_path) -> None:
    proof = tmp_path / "it-ran"
    with (tmp_path / "w.pth").open("wb") as file:
        pickle.dump({"teacher": Boom(proof)}, file)
    torch.save({"teacher": Boom(proof)}, tmp_path / "zip.pth")
    for name in ("w.pth", "zip.pth"):
        with pytest.raises(CheckpointError, match="its code is not run"):
            load_backbone(trunk_of(), tmp_path / name)
    assert not proof.exists()


def damaged(kind: str, tmp_path: Path) -> Path:
    weights = trunk_of(seed=1).state_dict()
    path = tmp_path / "w.pth"
    if kind == "patch":
        weights = trunk_of(BackboneConfig(**{**vars(TINY), "patch_px": 16})).state_dict()
    elif kind == "deeper":
        weights = trunk_of(BackboneConfig(**{**vars(TINY), "depth": 3})).state_dict()
    elif kind == "shallower":
        weights = trunk_of(BackboneConfig(**{**vars(TINY), "depth": 1})).state_dict()
    elif kind == "wider":
        weights = trunk_of(BackboneConfig(**{**vars(TINY), "embed_dim": 48})).state_dict()
    if kind == "missing":
        return path
    torch.save([1, 2] if kind == "list" else {} if kind == "empty" else weights, path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "text":
        path.write_text("<!DOCTYPE html>")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("patch", "patches of 16 px, this model of 8"),
        ("deeper", "has unknown blocks.2"),
        ("shallower", "lacks blocks.1"),
        ("wider", "another architecture"),
        ("missing", "no such file"),
        ("list", "expected a state dict"),
        ("empty", "holds no weights"),
        ("cut", "cannot be read"),
        ("text", "a page or a text"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line_and_changes_nothing(tmp_path, kind, message) -> None:
    path, trunk = damaged(kind, tmp_path), trunk_of(seed=3)
    before = outputs(trunk)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_backbone(trunk, path)
    assert "\n" not in str(caught.value)
    assert torch.equal(outputs(trunk), before)


def test_a_directory_says_its_architecture(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"kind": "dino", "model": vars(TINY)}))
    assert saved_backbone(tmp_path) == TINY
    assert saved_backbone(tmp_path / "config.json") is None
    assert architecture_of(TINY) == TINY
    (tmp_path / "config.json").write_text(json.dumps({"kind": "steering", "model": {"hidden_size": 8}}))
    with pytest.raises(CheckpointError, match="no checkpoint of a backbone"):
        saved_backbone(tmp_path)


def test_the_name_of_fetched_weights_has_their_tag() -> None:
    assert fetched_name("vit_small_patch16_224") == "vit_small_patch16_224.augreg_in21k_ft_in1k"
    for name in ("vit_small_patch8_224.dino", "vit_small_patch14_reg4_dinov2.lvd142m"):
        assert fetched_name(name) == name
        assert fetched_name(name.partition(".")[0]) == name, "docs/models.md says that it is the default"
    with pytest.raises(
        UnsupportedModelError, match=r"no weights vit_small_patch16_224\.dine; it has .*\.dino"
    ):
        fetched_name("vit_small_patch16_224.dine")
    with pytest.raises(UnsupportedModelError, match="did you mean vit_small"):
        fetched_name("vit_smal_patch16_224.dino")


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch, caplog) -> None:
    def unreachable(*_: object, **__: object) -> None:
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s [Retry 1/5].")
        raise OSError("name or service not known")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    monkeypatch.setattr("driving_xai.models.pretrained.require_reachable", lambda *_: None)
    level = logging.getLogger("huggingface_hub").level
    with pytest.raises(CheckpointError, match=r"weights resnet18\.a1_in1k are neither cached nor reachable"):
        build_backbone(BackboneConfig(backbone="resnet18"), pretrained=True)
    assert not caplog.records
    assert logging.getLogger("huggingface_hub").level == level


def test_without_a_network_one_attempt_says_so(monkeypatch) -> None:
    """huggingface_hub alone tries for the better part of a minute."""
    asked = []

    def unreachable(request: urllib.request.Request, timeout: float) -> None:
        asked.append((request.get_method(), timeout))
        raise urllib.error.URLError("name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    message = r"resnet18\.a1_in1k are neither cached nor reachable \(.*name or service not known\); give a local file"
    with pytest.raises(CheckpointError, match=message) as caught:
        build_backbone(BackboneConfig(backbone="resnet18"), pretrained=True)
    assert "\n" not in str(caught.value)
    assert asked == [("HEAD", 10.0)]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE forbids"):
        build_backbone(BackboneConfig(backbone="resnet18"), pretrained=True)
    assert len(asked) == 1


CONVOLUTIONAL = (
    *(
        "repvit_m0_9",
        "fastvit_t8",
        "mobilevit_xxs",
        "efficientvit_b0",
        "convnext_atto",
        "mobilenetv3_small_050",
    ),
    *(
        "regnetx_002",
        "densenet121",
        "inception_v3",
        "ghostnet_100",
        "tf_efficientnet_lite0",
        "hrnet_w18_small",
    ),
)
"""Names with and without "vit" in them; inception_v3 takes no 64 px, hrnet's stages are lists."""
OF_ONE_SIZE = ("coatnet_nano_rw_224", "maxvit_nano_rw_256", "efficientvit_m0", "levit_conv_128s")
TRANSFORMERS = (
    *(
        "deit_tiny_distilled_patch16_224",
        "vit_tiny_r_s16_p8_224",
        "deit3_small_patch16_224",
        "flexivit_small",
    ),
    "vit_tiny_patch16_224",
)
REFUSED = (
    *("hiera_tiny_224", "pit_ti_224", "efficientformer_l1", "swin_tiny_patch4_window7_224", "cait_xxs24_224"),
    *("xcit_nano_12_p16_224", "eva02_tiny_patch14_224", "levit_128s", "crossvit_tiny_240", "convit_tiny"),
    *("mixer_s32_224", "mvitv2_tiny", "vit_relpos_small_patch16_224", "resmlp_12_224"),
)
LARGE = (
    *(
        "inception_v4",
        "inception_resnet_v2",
        "volo_d1_224",
        "coatnet_0_rw_224",
        "beit_base_patch16_224",
        "vgg11",
    ),
    *(
        "samvit_base_patch16",
        "swinv2_tiny_window8_256",
        "convnextv2_atto",
        "davit_tiny",
        "nest_tiny",
        "dla34",
    ),
    *(
        "twins_pcpvt_small",
        "sequencer2d_s",
        "naflexvit_base_patch16_gap",
        "nasnetalarge",
        "edgenext_xx_small",
    ),
)


def used(name: str) -> ActionModel | None:
    """An action model on the backbone, run once with its layer for activation maps; None where refused."""
    try:
        model = ActionModel(ActionConfig(backbone=name, blocks=1)).eval()
    except UnsupportedModelError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert name in str(error)  # noqa: PT017
        return None
    found = []
    handles = (
        []
        if model.feature_map is None
        else [model.feature_map.layer.register_forward_hook(lambda *run: found.append(run[2]))]
    )
    size = model._one_size or ((160, 192) if "inception" in name else (64, 96))
    with torch.no_grad(), removed_after(handles):
        assert model(torch.rand(1, 3, *size)).isfinite().all()
    if handles:
        (maps,) = found
        # Rows before columns and channels first: wide frames have wide maps.
        assert maps.dim() == 4
        assert (maps.shape[2] < maps.shape[3]) == (size[0] < size[1]), maps.shape
    return model


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *OF_ONE_SIZE, *TRANSFORMERS])
def test_a_backbone_of_timms_is_built_by_its_type_and_not_by_its_name(name) -> None:
    model = used(name)
    assert model is not None
    assert (model.vit is not None) == (name in TRANSFORMERS)
    if name in OF_ONE_SIZE:
        with pytest.raises(UnsupportedModelError, match=r"px only; set model\.image_size"):
            model(torch.rand(1, 3, 64, 96))


def test_frames_that_a_network_shrinks_to_nothing_are_one_line() -> None:
    model = ActionModel(ActionConfig(backbone="inception_v3")).eval()
    with pytest.raises(UnsupportedModelError, match="64 x 96 px, too small for inception_v3") as caught:
        model(torch.rand(1, 3, 64, 96))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_neither_class_token_nor_feature_maps_is_one_line(name) -> None:
    assert used(name) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_any_other_network_is_built_or_refused_in_one_line(name) -> None:
    used(name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig(backbone="resnet10t", embed_dim=8), r"cannot be built with embed_dim \("),
        (
            BackboneConfig(backbone="vit_tiny_patch16_224", output_stride=8),
            r"cannot be built with output_stride \(",
        ),
        (BackboneConfig(backbone="swin_tiny_patch4_window7_224", patch_px=3), "swin_tiny_patch4_window7_224"),
    ],
)
def test_a_setting_that_an_architecture_does_not_have_is_named(config, message) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        build_backbone(config)
    assert "dynamic_img_size" not in str(caught.value).partition("(")[0]
