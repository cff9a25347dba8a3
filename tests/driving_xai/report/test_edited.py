"""Where the points of insertion less deletion lie, from what results hold: the curves and their areas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from driving_xai.metrics.curves import insertion_deletion, patch_insertion_deletion, rank
from driving_xai.metrics.quantities import STEERING_ERROR
from driving_xai.metrics.registry import build
from driving_xai.report.edited import fractions_of


def _brightness(frames: torch.Tensor) -> torch.Tensor:
    """A score that falls as pixels go, the lower ones more."""
    weights = torch.linspace(0.2, 2, frames.shape[2])[:, None]
    return (frames.mean(1) * weights).mean((1, 2))[:, None]


def _output(scores: torch.Tensor) -> torch.Tensor:
    return scores[..., 0]


@pytest.mark.parametrize(
    ("name", "size"), [("insertion-deletion", (11, 29)), ("pid-1", (11, 29)), ("pid-2", (33, 34))]
)
def test_the_points_are_those_the_measure_was_taken_at(name, size):
    """None of the sizes is a multiple of the step, so the last one is shorter."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(6, 3, *size, generator=generator)
    ranks = torch.stack([rank(torch.rand(6, *size, generator=generator), generator) for _ in range(2)], 1)
    found = (
        insertion_deletion(_brightness, frames, ranks, _output)
        if name == "insertion-deletion"
        else patch_insertion_deletion(_brightness, frames, ranks, _output, patch_px=int(name[-1]))
    )
    expected = found.fractions.tolist()
    assert expected[-1] - expected[-2] < 0.9 * expected[1], "or the test would pass with equal steps"
    curves, areas = (found.insertion - found.deletion).float().mean(0), found.score.mean(0)
    scores = [
        {"curve": curve.tolist(), "value": {"mean": area}}
        for curve, area in zip(curves, areas.tolist(), strict=True)
    ]
    about = build(name).describe(STEERING_ERROR)
    np.testing.assert_allclose(fractions_of(about, scores), expected, atol=1e-3)


def test_curves_that_tell_nothing_of_their_points_are_drawn_evenly():
    about = build("pid-1").describe(STEERING_ERROR)
    flat = [{"curve": [2.0] * 5, "value": {"mean": 2.0}}]
    assert fractions_of(about, flat) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    unknown = [{"curve": None, "value": {"mean": None}}]
    assert fractions_of(about, unknown) == []
    assert fractions_of(build("auroc").describe(STEERING_ERROR), flat) == []
    assert fractions_of(build("deletion").describe(STEERING_ERROR), flat)[-1] == 0.25
