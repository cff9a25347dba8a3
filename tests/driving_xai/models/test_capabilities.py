"""Compiled, parallel, frozen and half-precision networks as torchvision and timm make them: the maps of the plain one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.registry import build
from driving_xai.models.capabilities import unwrapped
from driving_xai.targets import output

FRAMES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
OPTIONS = {
    "rise": {"samples": 8},
    "lime": {"samples": 30},
    "smoothgrad": {"samples": 2},
    "smooth-grad-cam++": {"samples": 2},
    "integrated-gradients": {"steps": 4},
    "removal-pursuit": {"steps": 3},
    "occlusion": {"window_px": (32, 32), "stride_px": (32, 32)},
    "snna": {"samples": 2},
    "attention-ig": {"steps": 2},
}
EVERYWHERE = (
    *("grad-cam", "grad-cam++", "xgrad-cam", "smooth-grad-cam++", "attention-guided-cam", "gradient", "smoothgrad"),
    *("integrated-gradients", "heavier-side-ig", "removal-pursuit", "occlusion", "rise", "lime"),
    *("captum:Saliency", "grad-cam:GradCAM"),
)  # fmt: skip
OF_TRANSFORMERS = (
    "raw-attention",
    "rollout",
    "attention-gradient",
    "norm-attention",
    "generic-attention",
    "snna",
)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=3).eval()


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=3).eval()


@torch.no_grad()
def compiled(network: nn.Module) -> nn.Module:
    whole: nn.Module = torch.compile(network, backend="eager")
    whole(FRAMES)
    return whole


@torch.no_grad()
def compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="eager")
    network(FRAMES)
    return network


@torch.no_grad()
def compiled_in_part(network: nn.Module) -> nn.Module:
    if isinstance(network, torchvision.models.ResNet):
        network.layer4 = torch.compile(network.layer4, backend="eager")
    else:
        network.blocks[-1] = torch.compile(network.blocks[-1], backend="eager")
    network(FRAMES)
    return network


def frozen(network: nn.Module) -> nn.Module:
    return network.requires_grad_(False)


HOW = (compiled, compiled_in_place, compiled_in_part, nn.DataParallel, frozen)


def require_the_maps_of_the_plain_one(made: Callable[[], nn.Module], how, names) -> None:
    network = how(made())
    for name in names:
        expected = build(name, **OPTIONS.get(name, {}))(made(), FRAMES, output(1))
        found = build(name, **OPTIONS.get(name, {}))(network, FRAMES, output(1))
        assert expected.std() > 0, name
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("how", HOW, ids=lambda each: each.__name__)
@pytest.mark.parametrize(("made", "name"), [(resnet, "grad-cam"), (transformer, "grad-cam")])
def test_a_network_in_another_form_has_the_maps_of_the_plain_one(made, name, how) -> None:
    require_the_maps_of_the_plain_one(made, how, [name])


@pytest.mark.parametrize("how", [each for each in HOW if each is not compiled_in_part])
def test_attention_is_read_in_another_form_too(how) -> None:
    require_the_maps_of_the_plain_one(transformer, how, ["generic-attention"])


def test_blocks_that_were_replaced_by_compiled_ones_are_refused_in_one_line() -> None:
    with pytest.raises(UnsupportedModelError, match=r"torch\.compile has replaced; give it with the blocks"):
        build("rollout")(compiled_in_part(transformer()), FRAMES, output(1))


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW, ids=lambda each: each.__name__)
@pytest.mark.parametrize("made", [resnet, transformer])
def test_every_method_has_the_maps_of_the_plain_one(made, how) -> None:
    reads_blocks = made is transformer and how is not compiled_in_part
    names = EVERYWHERE + (OF_TRANSFORMERS if reads_blocks else ())
    require_the_maps_of_the_plain_one(made, how, names)


HALF = {resnet: ("grad-cam", "rise"), transformer: ("grad-cam", "generic-attention", "rollout", "snna")}


@pytest.mark.parametrize("made", HALF)
def test_half_precision_gives_nearly_the_same_maps_and_in_single_precision(made) -> None:
    for name in HALF[made]:
        expected = build(name, **OPTIONS.get(name, {}))(made(), FRAMES, output(1))
        found = build(name, **OPTIONS.get(name, {}))(made().bfloat16(), FRAMES.bfloat16(), output(1))
        assert found.dtype == torch.float32
        pair = torch.stack([expected.flatten(), found.flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.9, name


@pytest.mark.parametrize("made", [resnet, transformer])
def test_frames_of_another_precision_are_one_line(made) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"does not take frames .*give frames of the size and precision"
    ):
        build("gradient")(made().bfloat16(), FRAMES, output(1))


def test_a_library_that_knows_no_half_precision_is_one_line() -> None:
    with pytest.raises(UnsupportedModelError, match=r"BFloat16.*use another method"):
        build("grad-cam:GradCAM")(resnet().bfloat16(), FRAMES.bfloat16(), output(1))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_a_module_of_torch_jit_is_taken_as_it_is() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    traced = torch.jit.trace(net, torch.rand(1, 3, 4, 4))
    assert unwrapped(traced) is traced
