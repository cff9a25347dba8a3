"""The action model: what its head reads, any input size, CNNs, and what it refuses."""

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from driving_xai import checkpoint
from driving_xai.errors import CheckpointError, UnsupportedModelError
from driving_xai.models.actions import ActionConfig, ActionModel, load_head
from driving_xai.models.capabilities import feature_map_of
from driving_xai.types import Cells

TINY = {"backbone": "vit_tiny_patch16_224", "embed_dim": 24, "depth": 5, "heads": 3, "image_size": (32, 48)}


def model_of(**keywords) -> ActionModel:
    torch.manual_seed(0)
    model = ActionModel(ActionConfig(**{**TINY, **keywords})).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():  # Biases and class tokens start at 0, which hides mistakes.
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def frames_of(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)).double()


def test_the_head_reads_the_class_tokens_of_the_last_blocks_each_after_the_final_norm() -> None:
    model, frames = model_of(patch_px=8), frames_of(32, 48)
    seen = []
    handles = [
        block.register_forward_hook(lambda _b, _i, output: seen.append(output)) for block in model.vit.blocks
    ]
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    model.vit((frames - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    for handle in handles:
        handle.remove()
    read = torch.cat([model.vit.norm(tokens)[:, 0] for tokens in seen[-4:]], 1)
    expected = read @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(frames), expected, rtol=1e-6, atol=1e-9)  # mean and std are float32


def test_a_frame_is_judged_by_itself() -> None:
    model, frames = model_of(), frames_of(32, 48, batch=3)
    torch.testing.assert_close(model(frames)[1:2], model(frames[1:2]))


def test_registers_and_the_four_blocks_of_dinov2_are_read_alike() -> None:
    model = model_of(backbone="vit_small_patch14_reg4_dinov2", image_size=(42, 56), depth=4)
    assert model.vit.num_prefix_tokens == 5
    frames = frames_of(42, 56)
    tokens = model.vit.forward_features((frames - model.mean) / model.std)
    assert torch.equal(model.features(frames)[:, -24:], tokens[:, 0])


@pytest.mark.parametrize("size", [(64, 112), (32, 32), (33, 55)])
def test_positions_are_interpolated_to_any_size(size) -> None:
    """As if the model had been built for that size from positions resampled beforehand."""
    model, frames = model_of(), frames_of(*size)
    height, width = size[0] // 16 * 16, size[1] // 16 * 16
    other = model_of(image_size=(height, width))
    positions = resample_abs_pos_embed(
        model.vit.pos_embed, [height // 16, width // 16], [2, 3], num_prefix_tokens=1
    )
    other.load_state_dict({**model.state_dict(), "vit.pos_embed": positions})
    torch.testing.assert_close(model(frames), other(frames[..., :height, :width]), rtol=1e-6, atol=1e-8)


def test_what_lies_beyond_the_last_whole_patch_is_not_seen() -> None:
    model, frames = model_of(), frames_of(39, 55).requires_grad_()
    (gradient,) = torch.autograd.grad(model(frames).square().sum(), frames)
    assert gradient[..., :32, :48].ne(0).all()
    assert gradient[..., 32:, :].eq(0).all()
    assert gradient[..., 48:].eq(0).all()


def test_a_convolutional_network_pools_its_last_maps() -> None:
    model = ActionModel(ActionConfig(backbone="resnet10t")).eval()
    frames = frames_of(64, 96).float()
    maps = []
    handle = model.feature_map.layer.register_forward_hook(
        lambda _layer, _inputs, output: maps.append(output)
    )
    scores = model(frames)
    handle.remove()
    assert maps[0].shape == (2, 512, 2, 3)
    expected = maps[0].mean((2, 3)) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(scores, expected)
    assert model.vit is None


def centred_on(gradient: torch.Tensor) -> tuple[float, float]:
    """The centre of mass, row and column."""
    weight = gradient / gradient.sum()
    rows, columns = torch.arange(weight.shape[0]).double(), torch.arange(weight.shape[1]).double()
    return float(weight.sum(1) @ rows), float(weight.sum(0) @ columns)


@pytest.mark.parametrize("stride", [8, 32])
def test_the_cells_of_a_resnet_lie_where_it_says(stride) -> None:
    """With equal positive weights and averages in place of maxima, a cell's gradient is symmetric about it."""
    model = ActionModel(ActionConfig(backbone="resnet10t", output_stride=stride)).eval().double()
    model.cnn.maxpool = nn.AvgPool2d(3, 2, 1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1.0 / module.weight[0].numel())
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm starts the last of a block at 0.
    for stage in (model.cnn.layer2, model.cnn.layer3, model.cnn.layer4):
        # This variant's shortcut averages 2 x 2 pixels, which is half a pixel off by design.
        nn.init.zeros_(stage[0].downsample[1].weight)
    frames = torch.ones(1, 3, 320, 320, dtype=torch.double, requires_grad=True)
    maps = model.cnn.forward_features(frames)
    row, column = maps.shape[2] // 2, maps.shape[3] // 2 - 1
    (gradient,) = torch.autograd.grad(maps[0, :, row, column].sum(), frames)
    first, found = model.feature_map.cells[:2]
    assert found == stride
    assert centred_on(gradient[0].sum(0)) == pytest.approx((first + row * stride, first + column * stride))


def test_cells_of_patches_are_their_middles() -> None:
    model = model_of(patch_px=8)
    at = feature_map_of(model, torch.zeros(1, 3, *model.input_size))
    assert (at.layout, at.prefix_tokens, at.cells) == ("tokens", 1, Cells(3.5, 8.0))


def test_a_checkpoint_brings_back_the_same_model(tmp_path) -> None:
    model = model_of(blocks=2, actions=("go", "stop")).float()
    config = {"kind": "actions", "model": {**TINY, "blocks": 2, "actions": ["go", "stop"]}}
    checkpoint.save(tmp_path, model, config, {})
    loaded = checkpoint.load(tmp_path, kind="actions").model
    frames = frames_of(32, 48).float()
    assert torch.equal(loaded(frames), model(frames))
    assert (loaded.outputs.kind, loaded.outputs.names) == ("multilabel", ("go", "stop"))
    assert not loaded.training


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"backbone": "vit_smal_patch8_224"}, "did you mean vit_small_patch8_224"),
        ({"backbone": "vit_base_patch16_siglip_224"}, "no class token"),
        ({"backbone": "swin_tiny_patch4_window7_224", "embed_dim": None, "depth": None}, "cannot be built"),
        ({"backbone": "resnet10t"}, "cannot be built with img_size"),
        ({"heads": 5}, "cannot be built with .*num_heads"),
        ({"blocks": 6}, "reads 6 blocks and .* has 5"),
    ],
)
def test_architectures_that_cannot_serve_are_refused_in_a_line(keywords, message) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        model_of(**keywords)
    assert "\n" not in str(caught.value)


def test_a_backbone_without_tokens_or_maps_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="neither in a class token nor in feature maps"):
        ActionModel(ActionConfig(backbone="swin_tiny_patch4_window7_224"))


@pytest.mark.parametrize("keywords", [{}, {"backbone": "resnet10t"}])
def test_frames_smaller_than_a_patch_are_refused(keywords) -> None:
    config = ActionConfig(**(keywords or TINY))
    with pytest.raises(UnsupportedModelError, match="frames are 15 x 64 px"):
        ActionModel(config).eval()(torch.rand(1, 3, 15, 64))


@pytest.mark.parametrize(
    "wrong", [{"blocks": 0}, {"actions": ()}, {"actions": ("a", "a")}, {"depth": 0}, {"image_size": (32,)}]
)
def test_settings_that_cannot_be_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="expected"):
        ActionConfig(**{**TINY, **wrong})


def snna_head(weight: torch.Tensor, bias: torch.Tensor) -> dict:
    """The layout of the authors' linear checkpoint."""
    return {
        "epoch": 100,
        "best_acc": 72.355,
        "state_dict": {"module.linear.weight": weight, "module.linear.bias": bias},
        "optimizer": {"state": {}, "param_groups": [{"lr": 2.5e-4, "params": [0, 1]}]},
        "scheduler": {"T_max": 100, "last_epoch": 100},
    }


def test_the_authors_head_is_read(tmp_path) -> None:
    model = model_of().float()
    weight, bias = torch.randn(4, 96), torch.randn(4)
    torch.save(snna_head(weight, bias), tmp_path / "head.pth.tar")
    load_head(model, tmp_path / "head.pth.tar")
    assert torch.equal(model.head.weight, weight)
    assert torch.equal(model.head.bias, bias)


def test_a_head_of_another_width_is_refused_and_changes_nothing(tmp_path) -> None:
    model = model_of().float()
    before = model.head.weight.clone()
    torch.save(snna_head(torch.randn(4, 1536), torch.randn(4)), tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match=r"\(4, 1536\).*\(4, 96\)"):
        load_head(model, tmp_path / "head.pth")
    assert torch.equal(model.head.weight, before)


def test_timm_is_what_the_names_mean() -> None:
    """No classifier of timm's is left over, and the class token is used."""
    config = ActionConfig(backbone="vit_tiny_patch16_224")
    model = ActionModel(config)
    reference = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    assert model.vit.state_dict().keys() == reference.state_dict().keys()
