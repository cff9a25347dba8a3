"""A map of another image as a control: which image is drawn, and that it is no explanation of this one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import driving_xai as dx
from driving_xai.errors import OptionError
from driving_xai.explain.another_image import AnotherImage
from driving_xai.explain.base import Function
from driving_xai.explain.registry import build
from driving_xai.targets import output

LIGHTNESS = Function(function=lambda model, frames, target: frames.mean(1))
"""A map that shows which frame it was made of."""


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(6, 3, 12, 16, generator=torch.Generator().manual_seed(1))


def test_each_map_is_another_image_s_and_batches_change_nothing(net, frames):
    control = AnotherImage(explainer=LIGHTNESS, others=frames, seed=3)
    maps = control(net, frames, output(0))
    sources = [int((frames.mean(1) == each).all((1, 2)).nonzero()) for each in maps]
    assert all(source != place for place, source in enumerate(sources))
    assert len(set(sources)) > 1
    apart = torch.cat([control(net, frames[i : i + 1], output(0)) for i in range(6)])
    assert torch.equal(maps, apart)
    assert not torch.equal(
        maps, AnotherImage(explainer=LIGHTNESS, others=frames, seed=4)(net, frames, output(0))
    )


def test_the_method_behind_it_is_built_with_its_own_options(net, frames):
    """Against Grad-CAM of the images that were drawn."""
    named = build("another-image:grad-cam", seed=3, layer="0").among(frames)
    drawn = torch.stack([frames[i] for i in _sources(frames, seed=3)])
    expected = build("grad-cam", layer="0")(net, drawn, output(1))
    assert torch.equal(named(net, frames, output(1)), expected)
    with pytest.raises(ValueError, match="explainer 'grad-kam' is unknown"):
        build("another-image:grad-kam")
    with pytest.raises(OptionError, match="draws from other images, and has none"):
        build("another-image:grad-cam")(net, frames, output(0))
    with pytest.raises(OptionError, match="has 1 of shape"):
        named.among(frames[:1])(net, frames, output(0))


def _sources(frames: torch.Tensor, *, seed: int) -> list[int]:
    maps = AnotherImage(explainer=LIGHTNESS, others=frames, seed=seed)(
        nn.Identity().eval(), frames, lambda x: x
    )
    return [int((frames.mean(1) == each).all((1, 2)).nonzero()) for each in maps]


def test_scoring_draws_from_the_images_that_it_scores(net, frames):
    """An explanation that finds the pixels beats its own maps of other images; both are scored in one run."""
    model = dx.wrap(net, outputs="multiclass", names=("a", "b"))
    evaluated = dx.evaluate(
        model, frames, methods=["gradient", "another-image:gradient"], metrics=["deletion"]
    )
    scored = evaluated.per_frame.set_index("method")["value"]
    assert scored["another-image:gradient"].nunique() > 1
    assert not scored["gradient"].equals(scored["another-image:gradient"])


def test_copies_of_a_frame_are_no_other_images(net, frames):
    """A car that stands still: of five images three are the same."""
    others = frames[[0, 0, 0, 1, 2]]
    for seed in range(40):
        (found,) = AnotherImage(explainer=LIGHTNESS, others=others, seed=seed)(net, frames[:1], output(0))
        assert not torch.equal(found, frames[0].mean(0)), seed
    with pytest.raises(OptionError, match="all there are equal one frame"):
        AnotherImage(explainer=LIGHTNESS, others=frames[[0, 0]])(net, frames[:1], output(0))
