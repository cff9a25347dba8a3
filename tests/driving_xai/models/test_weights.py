"""Weights as people publish them: every wrapper is seen through, nothing runs, what does not fit is one line."""

import argparse
import logging
import pathlib
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from driving_xai.errors import CheckpointError
from driving_xai.models import weights
from driving_xai.models.actions import ActionConfig, ActionModel, load_head
from driving_xai.models.backbone import BackboneConfig, build_backbone, load_backbone
from driving_xai.models.classify import Classifier, ClassifierConfig, load_weights

VIT = BackboneConfig(
    backbone="vit_tiny_patch16_224", embed_dim=24, depth=2, heads=3, patch_px=8, image_size=(32, 32)
)


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def drawn(seed: int = 1) -> dict[str, torch.Tensor]:
    return small(seed).state_dict()


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def trunk(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    made = build_backbone(VIT).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def same(network: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


WRAPPED = {
    "bare": (lambda s: s, ""),
    "examples": (
        lambda s: {"epoch": 3, "best_acc1": 0.7, "state_dict": under("module.", s)},
        "state_dict.module.",
    ),
    "lightning": (
        lambda s: {"state_dict": under("model.", s) | {"loss.weight": torch.ones(2)}, "epoch": 1},
        "state_dict.model.",
    ),
    "lightning net": (lambda s: {"state_dict": under("net.", s)}, "state_dict.net."),
    "compiled": (lambda s: {"model": under("_orig_mod.", s)}, "model."),
    "compiled inside": (lambda s: under("model._orig_mod.module.", s), "model.module."),
    "own word": (lambda s: {"ckpt": {"encoder_q": s}}, "ckpt.encoder_q."),
    "averaged model": (lambda s: under("module.", s) | {"n_averaged": torch.tensor(3)}, "module."),
}


@pytest.mark.parametrize("layout", WRAPPED)
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_every_wrapper_is_seen_through_in_every_kind_of_file(tmp_path, layout, form) -> None:
    wrap, prefix = WRAPPED[layout]
    # The suffix says nothing, and here it says something wrong.
    path = tmp_path / ("w.pth" if form == "safetensors" else "w.safetensors")
    content = wrap(drawn())
    if form == "safetensors":
        # It holds tensors by dotted names only.
        save_file(under(prefix, drawn()) | {"steps": torch.tensor(3)} if prefix else drawn(), path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    network = small()
    found = weights.load(network, path, name="small")
    assert found.prefix == prefix
    assert same(network, drawn())


@pytest.mark.parametrize(
    ("content", "taken", "other"),
    [
        ({"model": 1, "model_ema": 2}, "model_ema", "model"),
        ({"state_dict": 1, "state_dict_ema": 2}, "state_dict_ema", "state_dict"),
        ({"online_model": 1, "ema_model": 2}, "ema_model", "online_model"),
        ({"student": 1, "teacher": 2}, "teacher", "student"),
        ({"net": 1, "student": 2}, "net", "student"),
    ],
)
def test_which_of_two_was_taken_is_said_and_the_other_can_be_asked_for(
    tmp_path, caplog, content, taken, other
) -> None:
    caplog.set_level(logging.INFO)
    torch.save({name: drawn(seed) for name, seed in content.items()}, tmp_path / "two.pth")
    network = small()
    found = weights.load(network, tmp_path / "two.pth", name="small")
    assert same(network, drawn(content[taken]))
    assert found.described in caplog.text
    assert f"took {taken}, not {other}" in found.described
    weights.load(network, tmp_path / f"two.pth#{other}", name="small")
    assert same(network, drawn(content[other]))
    with pytest.raises(CheckpointError, match="no weights of this network under 'third'"):
        weights.load(network, tmp_path / "two.pth#third", name="small")


def test_averages_of_parameters_alone_do_not_replace_the_whole(tmp_path) -> None:
    """Without the running statistics of batch normalisation an average is no network."""
    parameters = {name: value for name, value in drawn(2).items() if "running" not in name}
    torch.save({"state_dict": drawn(1), "ema": parameters}, tmp_path / "w.pth")
    network = small()
    weights.load(network, tmp_path / "w.pth", name="small")
    assert same(network, drawn(1))


def test_what_trainings_keep_next_to_their_weights_is_read_without_code(tmp_path) -> None:
    content = {
        "model": drawn(),
        "args": argparse.Namespace(arch="vit", output=pathlib.PurePosixPath("a/b"), rate=np.float32(0.1)),
        "path": Path("a/b"),
        "best": np.float64(71.5),
        "count": np.int64(3),
        "history": np.arange(3.0),
        "name": np.str_("resnet"),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"params": [0]}]},
    }
    torch.save(content, tmp_path / "w.pth")
    # NumPy 1 called its core by another name.
    torch.save(content, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "numpy1.pth").write_bytes(
        (tmp_path / "legacy.pth").read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    )
    for name in ("w.pth", "legacy.pth", "numpy1.pth"):
        network = small()
        weights.load(network, tmp_path / name, name="small")
        assert same(network, drawn()), name


def test_dinos_whole_checkpoint_with_its_settings(tmp_path) -> None:
    """What main_dino.py saves: `args` is a Namespace, and there are heads and an optimizer."""
    teacher, student, loaded = trunk(1), trunk(2), trunk(3)
    head = {"head.mlp.0.weight": torch.randn(8, 24), "head.last_layer.weight_g": torch.ones(16, 1)}
    torch.save(
        {
            "student": under("module.", under("backbone.", student.state_dict()) | head),
            "teacher": under("backbone.", teacher.state_dict()) | head,
            "optimizer": {"state": {}, "param_groups": []},
            "epoch": 3,
            "args": argparse.Namespace(arch="vit_small", patch_size=8),
            "dino_loss": {"center": torch.zeros(1, 16)},
        },
        tmp_path / "checkpoint.pth",
    )
    found = load_backbone(loaded, tmp_path / "checkpoint.pth")
    assert same(loaded, teacher.state_dict())
    assert found.prefix == "teacher.backbone."
    load_backbone(loaded, tmp_path / "checkpoint.pth#student")
    assert same(loaded, student.state_dict())


@pytest.mark.parametrize("layout", ["teacher", "chunked", "flat", "both"])
def test_dinov2s_teacher_files(tmp_path, layout) -> None:
    teacher, loaded = trunk(1), trunk(3)
    state = dict(teacher.state_dict()) | {"mask_token": torch.zeros(1, 24)}
    if layout in ("chunked", "both"):
        state = {name.replace("blocks.", "blocks.0.", 1): value for name, value in state.items()}
    heads = {"dino_head.last_layer.weight_v": torch.ones(2, 2), "ibot_head.mlp.0.weight": torch.ones(2, 2)}
    wrapped = under("backbone.", state) | heads
    content = under("teacher.", wrapped) if layout == "flat" else {"teacher": wrapped}
    if layout == "chunked":
        content = state
    torch.save(content, tmp_path / "teacher_checkpoint.pth")
    load_backbone(loaded, tmp_path / "teacher_checkpoint.pth")
    assert same(loaded, teacher.state_dict())


def test_files_older_than_the_counters_of_batch_normalisation_load(tmp_path) -> None:
    config = BackboneConfig(backbone="resnet10t")
    source, loaded = build_backbone(config), build_backbone(config)
    old = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    torch.save(old | {"fc.weight": torch.ones(3, 512), "fc.bias": torch.ones(3)}, tmp_path / "2017.pth")
    load_backbone(loaded, tmp_path / "2017.pth")
    assert same(loaded, source.state_dict())


def test_a_classifier_takes_the_same_wrappers_and_puts_only_another_head_aside(tmp_path) -> None:
    config = ClassifierConfig(classes=("a", "b", "c"), network="resnet10t", image_size=(32, 32))
    torch.manual_seed(0)
    whole = Classifier(config).network.state_dict()
    torch.save({"epoch": 1, "state_dict": under("module.", whole)}, tmp_path / "model_best.pth.tar")
    for classes in (("a", "b", "c"), ("a", "b")):
        torch.manual_seed(1)
        model = Classifier(ClassifierConfig(classes=classes, network="resnet10t", image_size=(32, 32)))
        head = model.network.fc.weight.clone()
        load_weights(model, tmp_path / "model_best.pth.tar")
        assert torch.equal(model.network.layer4[0].conv1.weight, whole["layer4.0.conv1.weight"])
        assert torch.equal(model.network.fc.weight, whole["fc.weight"] if len(classes) == 3 else head)
    narrow = {name: value[:2] if name == "fc.weight" else value for name, value in whole.items()}
    torch.save(narrow, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"fc\.bias \(3,\), expected \(2,\)"):
        load_weights(model, tmp_path / "odd.pth")


@pytest.mark.parametrize("prefix", ["", "module.linear.", "head.", "state_dict.module.linear."])
def test_a_head_under_any_of_its_names(tmp_path, prefix) -> None:
    model = ActionModel(ActionConfig(**{**vars(VIT), "blocks": 2}))
    head = {"weight": torch.randn(4, 48), "bias": torch.randn(4)}
    body = {"blocks.0.attn.weight": torch.ones(4, 48), "blocks.0.attn.bias": torch.ones(4)}
    torch.save(under(prefix, head) | body, tmp_path / "head.pth")
    load_head(model, tmp_path / "head.pth")
    assert torch.equal(model.head.weight, head["weight"])


class Code:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def bad(kind: str, folder: Path) -> Path:
    path = folder / "w.pth"
    if kind == "missing":
        return path
    if kind == "directory":
        return folder
    content = {
        "network": small(),
        "list": [1, 2],
        "tensor": torch.ones(2),
        "nothing": {},
        "numbers": {0: torch.ones(2)},
        "other": nn.LSTM(2, 2).state_dict(),
        "code": {"model": drawn(), "args": Code(folder / "it-ran")},
        "lacking": {name: value for name, value in drawn().items() if name != "3.bias"},
        "renamed": {name.replace("3.bias", "3.biases"): value for name, value in drawn().items()},
        "more": drawn() | {"4.weight": torch.ones(2)},
        "shape": drawn() | {"0.weight": torch.ones(4, 3, 5, 5)},
    }.get(kind, drawn())
    torch.save(content, path)
    start = {"page": b"<!DOCTYPE html>", "lfs": b"version https://git-lfs.github.com/spec/v1\n", "empty": b""}
    if kind in start:
        path.write_bytes(start[kind])
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "cut header":
        save_file(drawn(), path)
        path.write_bytes(path.read_bytes()[:40])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"model": Code(folder / "it-ran")}))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("directory", r"directory without model\.safetensors"),
        ("empty", "is empty"),
        ("page", "it is a page or a text"),
        ("lfs", "git lfs pull"),
        ("cut", "cannot be read .*copy or download it again"),
        ("cut header", "cannot be read .*copy or download it again"),
        ("network", r"torch\.nn\.modules\.container\.Sequential\), and its code is not run"),
        ("code", r"getattr\), and its code is not run|not run"),
        ("pickle", "not run|cannot be read"),
        ("list", "holds a list; expected a state dict"),
        ("tensor", "holds a Tensor; expected a state dict"),
        ("nothing", "holds no weights"),
        ("numbers", "holds no weights"),
        ("other", r"it has bias_hh_l0, .*expected 0\.bias, 0\.weight"),
        ("lacking", r"lacks 3\.bias: it is of another architecture than small"),
        ("renamed", r"lacks 3\.bias, the nearest it has is 3\.biases"),
        ("more", r"has unknown 4\.weight"),
        ("shape", r"has 0\.weight \(4, 3, 5, 5\), expected \(4, 3, 3, 3\)"),
    ],
)
def test_what_does_not_load_is_one_line_and_changes_nothing(tmp_path, kind, message) -> None:
    path, network = bad(kind, tmp_path), small()
    with pytest.raises(CheckpointError, match=message) as caught:
        weights.load(network, path, name="small")
    assert "\n" not in str(caught.value)
    assert same(network, drawn(0))
    assert not (tmp_path / "it-ran").exists()


def test_damaged_bytes_are_refused_or_read_and_never_anything_else(tmp_path) -> None:
    rng = random.Random(0)
    files = []
    for name, zipped in (("zip", True), ("legacy", False)):
        torch.save(
            {"model": drawn(), "args": argparse.Namespace(a=1)},
            tmp_path / name,
            _use_new_zipfile_serialization=zipped,
        )
        files.append((tmp_path / name).read_bytes())
    save_file(drawn(), tmp_path / "safe")
    files.append((tmp_path / "safe").read_bytes())
    for turn in range(150):
        data = bytearray(files[turn % 3])
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(min(len(data), 1500))] = rng.randrange(256)
        (tmp_path / "w").write_bytes(data[: rng.randint(1, len(data))] if turn % 5 == 0 else data)
        try:
            weights.load(small(), tmp_path / "w", name="small")
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_a_dictionary_that_contains_itself_ends(tmp_path) -> None:
    content: dict = {"model": drawn()}
    content["again"] = content
    torch.save(content, tmp_path / "w.pth")
    network = small()
    weights.load(network, tmp_path / "w.pth", name="small")
    assert same(network, drawn())
