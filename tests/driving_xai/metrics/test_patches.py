"""Insertion-deletion and its patches: slow twins, RISE's sum, exact counts, analytic scores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from driving_xai.metrics.confidence import OfClass
from driving_xai.metrics.curves import (
    area,
    both_ways,
    deletion,
    insertion,
    insertion_deletion,
    patch_insertion_deletion,
    rank,
)
from driving_xai.metrics.faithfulness import PID
from driving_xai.metrics.perturbation_curves import patch_count, patch_ranks, scores_along
from driving_xai.metrics.registry import PATCHES_PX
from driving_xai.perturb import blank
from driving_xai.targets import output
from driving_xai.types import Outputs


class Net(nn.Module):
    outputs = Outputs(kind="multiclass", names=("a", "b", "c"))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 8 * 10, 3)
        )
        self.batches: list[int] = []

    def forward(self, frames):
        self.batches.append(len(frames))
        return 3 * self.layers(frames)


class Bright(nn.Module):
    """The probability of class 1 is the share of bright pixels, so that areas are known."""

    outputs = Outputs(kind="multiclass", names=("dark", "bright"))

    def forward(self, frames):
        share = frames[:, 0].mean((1, 2)).clamp(1e-12, 1 - 1e-12)
        return torch.stack(((1 - share).log(), share.log()), 1)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double().eval()


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(3, 3, 16, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def saliency() -> torch.Tensor:
    return torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(5))


def _ranks(saliency: torch.Tensor) -> torch.Tensor:
    return rank(saliency, torch.Generator().manual_seed(0))


VALUE = OfClass(classes=torch.tensor([0, 1, 2]))
VALUE_OF_FIRST = OfClass(classes=torch.tensor([0]))


@pytest.mark.parametrize("patch_px", [1, 2, 3, 8, 16])
def test_patches_come_in_the_order_of_their_maxima(saliency, patch_px):
    """Slow twin: cut the map, take each patch's maximum, sort descending."""
    places, patches = patch_ranks(_ranks(saliency), (16, 20), patch_px), patch_count((16, 20), patch_px)
    for b, grid in enumerate(saliency):
        maxima = {
            (top, left): grid[top : top + patch_px, left : left + patch_px].max().item()
            for top in range(0, 16, patch_px)
            for left in range(0, 20, patch_px)
        }
        assert len(maxima) == patches
        order = sorted(maxima, key=lambda corner: -maxima[corner])
        for position, (top, left) in enumerate(order):
            found = places[b].view(16, 20)[top : top + patch_px, left : left + patch_px]
            assert (found == position).all()


@pytest.mark.parametrize("patch_px", PATCHES_PX)
def test_curves_equal_a_loop_over_patches(net, frames, saliency, patch_px):
    """Slow twin of eqs. 15 and 16: n patches copied one by one, for every n."""
    ranks = _ranks(saliency)
    bias = torch.full((3, 16, 20), 0.3, dtype=torch.float64)
    found = patch_insertion_deletion(
        net, frames, ranks, VALUE, patch_px=patch_px, fill=bias, patches_per_step=2
    )
    places, patches = patch_ranks(ranks, (16, 20), patch_px), patch_count((16, 20), patch_px)
    counts = [*range(0, patches, 2), patches]
    assert found.fractions.tolist() == pytest.approx([n / patches for n in counts])
    for b in range(3):
        for point, n in list(enumerate(counts))[:: max(1, len(counts) // 5)]:
            chosen = places[b].view(16, 20) < n
            inserted = torch.where(chosen, frames[b], bias)
            deleted = torch.where(chosen, bias, frames[b])
            for curve, picture in ((found.insertion, inserted), (found.deletion, deleted)):
                expected = net(picture[None]).softmax(1)[0, b]
                torch.testing.assert_close(curve[b, point], expected.detach(), rtol=1e-10, atol=0)


def test_pictures_of_ones_own_are_fills_several_in_one_run(net, frames, saliency):
    """Deletion to one picture and insertion into another, each as alone."""
    ranks, size = _ranks(saliency), (16, 20)
    bright, dark = (torch.full((3, *size), level, dtype=torch.float64) for level in (0.9, 0.1))
    curves = both_ways(size, insertion_fill=bright, deletion_fill=dark, patch_px=4, patches_per_step=5)
    together = scores_along(net, frames, ranks, curves)
    for curve, found in zip(curves, together, strict=True):
        (alone,) = scores_along(net, frames, ranks, [curve])
        torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        together[0][:, 0], net(bright.expand_as(frames)).detach(), rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(
        together[1][:, -1], net(dark.expand_as(frames)).detach(), rtol=1e-12, atol=1e-14
    )


def test_with_patches_of_one_pixel_it_is_insertion_minus_deletion(net, frames, saliency):
    """m = 1 and b = 0, as the paper states."""
    ranks = _ranks(saliency)
    found = patch_insertion_deletion(net, frames, ranks, VALUE, patch_px=1, patches_per_step=20)
    fractions = [step / 16 for step in range(17)]
    expected = area(fractions, VALUE(insertion(net, frames, ranks, fractions))) - area(
        fractions, VALUE(deletion(net, frames, ranks, fractions))
    )
    torch.testing.assert_close(found.score, expected, rtol=1e-10, atol=1e-14)


def test_areas_are_rises_sum(net, frames, saliency):
    """(sum - ends / 2) / n over equal steps, insertion from the blur, deletion to black."""
    ranks = _ranks(saliency)
    found = insertion_deletion(net, frames, ranks, VALUE, pixels_per_step=20)
    steps = 16
    assert found.insertion.shape == (3, steps + 1)
    for curve, start in ((found.insertion, blank(frames, "blur")), (found.deletion, frames)):
        torch.testing.assert_close(curve[:, 0], VALUE(net(start)).detach(), rtol=1e-12, atol=0)
    sums = (found.insertion - found.deletion).sum(1)
    ends = (found.insertion - found.deletion)[:, [0, -1]].sum(1) / 2
    torch.testing.assert_close(found.score, (sums - ends) / steps, rtol=1e-10, atol=1e-14)


def test_the_score_of_a_known_model():
    """Bright pixels first: insertion rises to its end at share s, deletion falls to 0 there."""
    frames = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    frames[..., :4] = 1  # A quarter of the pixels, in whole patches of 4.
    value = OfClass(classes=torch.tensor([1]))
    for patch_px in (1, 2, 4):
        best = patch_insertion_deletion(
            Bright(), frames, _ranks(frames[:, 0]), value, patch_px=patch_px, patches_per_step=1
        )
        worst = patch_insertion_deletion(
            Bright(), frames, _ranks(-frames[:, 0]), value, patch_px=patch_px, patches_per_step=1
        )
        # Insertion: a triangle up to the share 1/4 and a plateau; deletion: a triangle.
        share = 0.25
        expected = share * (1 - share / 2) - share * share / 2
        assert best.score.item() == pytest.approx(expected, abs=1e-9)
        assert worst.score.item() == pytest.approx(-expected, abs=1e-9)


def test_patches_forgive_what_pixels_do_not():
    """A map whose peaks are right and whose other values are noise: larger patches score higher."""
    frames = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    frames[..., 8:16, 8:16] = 1
    saliency = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    saliency[0, 11, 11] = 2
    value = OfClass(classes=torch.tensor([1]))
    scores = [
        patch_insertion_deletion(Bright(), frames, _ranks(saliency), value, patch_px=m, patches_per_step=1)
        for m in (1, 8)
    ]
    assert scores[1].score.item() > scores[0].score.item() + 0.02


def test_ties_add_no_patches_and_do_not_depend_on_the_batch(net, frames):
    """A coarse map, most of it equal: every count is exact, and each frame is as if it came alone."""
    coarse = torch.zeros(3, 16, 20)
    coarse[:, 4:8, 4:12] = 1
    places, patches = patch_ranks(_ranks(coarse), (16, 20), 4), patch_count((16, 20), 4)
    for each in places:
        assert sorted(each.view(16, 20)[::4, ::4].flatten().tolist()) == list(range(patches))
    together = patch_insertion_deletion(net, frames, _ranks(coarse), VALUE, patch_px=4)
    for b in range(3):
        alone = patch_insertion_deletion(
            net,
            frames[b : b + 1],
            _ranks(coarse[b : b + 1]),
            OfClass(classes=VALUE.classes[b : b + 1]),
            patch_px=4,
        )
        torch.testing.assert_close(alone.score[0], together.score[b], rtol=1e-10, atol=0)


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_batch_size_bounds_the_passes_and_changes_nothing(net, frames, saliency, batch_size):
    ranks = torch.stack((_ranks(saliency), _ranks(-saliency)), 1)
    clean = net(frames).detach()
    expected = patch_insertion_deletion(net, frames, ranks, VALUE, patch_px=2)
    net.batches.clear()
    found = patch_insertion_deletion(
        net, frames, ranks, VALUE, patch_px=2, batch_size=batch_size, clean=clean
    )
    assert max(net.batches) <= max(batch_size, 3)
    torch.testing.assert_close(found.score, expected.score, rtol=1e-10, atol=1e-14)
    assert found.score.shape == (3, 2)
    # Both methods share the scores of the frame and of the fill.
    assert torch.equal(found.insertion[:, 0, 0], found.insertion[:, 1, 0])
    assert torch.equal(found.insertion[..., 0], found.deletion[..., -1])
    assert torch.equal(found.insertion[..., -1], found.deletion[..., 0])


@pytest.mark.parametrize(("patch_px", "step", "points"), [(1, 100, 5), (2, 20, 5), (8, 4, 3)])
def test_the_metric_takes_the_steps_it_is_given(net, frames, saliency, patch_px, step, points):
    """(m, step) pairs, as the authors choose them: every `step` patches, and all, by the function itself."""
    metric = PID(patch_px=patch_px, patches_per_step=step)
    found = metric(net, frames[:1], saliency[:1], output(0))
    expected = patch_insertion_deletion(
        net, frames[:1], _ranks(saliency[:1]), VALUE_OF_FIRST, patch_px=patch_px, patches_per_step=step
    )
    assert found.curve.shape == (1, points)
    torch.testing.assert_close(found.value, expected.score, rtol=1e-10, atol=1e-14)
    with pytest.raises(ValueError, match="got patches_per_step 0"):
        PID(patches_per_step=0)
