"""What a score is worth to a measure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from data_prep.schema import VEHICLES
from driving_xai.data.drives import degrees_per_unit
from driving_xai.evaluation.images import PROBABILITY
from driving_xai.metrics.batch import Batch, Editing, Maps
from driving_xai.metrics.confidence import OfClass
from driving_xai.metrics.curves import rank
from driving_xai.metrics.registry import (
    MEASURES,
    STEERING_ERROR,
    Columns,
    CurveMeasure,
    SteeringError,
    angle_deg,
)
from driving_xai.perturb import pixel_counts
from driving_xai.targets import output
from driving_xai.types import Outputs


def test_error_is_in_degrees_of_the_steering_wheel():
    """1 / (100 m) at 10 m/s in the Udacity car, by equation 3 by hand."""
    vehicle = VEHICLES["lincoln-mkz"]
    factor = torch.from_numpy(degrees_per_unit(np.array([10.0, np.nan]), vehicle))
    scores = torch.tensor([[[0.01], [-0.02]], [[0.01], [0.0]]])
    error = SteeringError(
        degrees_per_unit=factor, reference_deg=torch.tensor([3.0, 1.0], dtype=torch.float64)
    )
    slipping = np.degrees(0.01 * 2.85 * 14.8 * (1 + 0.0014 * 100))
    still = np.degrees(0.01 * 2.85 * 14.8)
    expected = [[slipping - 3, 2 * slipping + 3], [still - 1, 1.0]]
    torch.testing.assert_close(error(scores), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    by_method = error(scores[:, None].expand(-1, 3, -1, -1))
    assert torch.equal(by_method[:, 2], error(scores))
    angles = angle_deg(scores[:, 0], factor)
    torch.testing.assert_close(angles, torch.tensor([slipping, still]).double(), rtol=1e-6, atol=0)


def test_an_unknown_reference_stays_unknown():
    error = SteeringError(
        degrees_per_unit=torch.ones(2).double(), reference_deg=torch.tensor([float("nan"), 0.0]).double()
    )
    assert error(torch.ones(2, 3, 1)).isnan().tolist() == [[True] * 3, [False] * 3]


def test_fractions_are_the_papers_and_rises():
    assert pytest.approx(0.25) == MEASURES["deletion"].fractions[-1]
    assert MEASURES["insertion"].fractions[0] == 0
    assert MEASURES["insertion"].fractions[-1] == 1
    for measure in MEASURES.values():
        if isinstance(measure, CurveMeasure):
            assert len(pixel_counts(measure.fractions, 80 * 160)) == 26


def test_the_fill_that_is_stated_is_the_one_that_is_used():
    said = {name: measure.describe(PROBABILITY, fill="mean") for name, measure in MEASURES.items()}
    assert said["deletion"]["fill"] == said["insertion"]["fill"] == "mean"
    assert said["pid-1"]["fill"] == said["pid-8"]["fill"] == {"insertion": "mean", "deletion": "mean"}
    assert said["insertion-deletion"]["fill"] == {"insertion": "blur", "deletion": "mean"}
    assert said["percentage-in"]["fill"] == "black"
    assert MEASURES["aupc"].describe(PROBABILITY, fill="black")["fill"] == "mean"
    assert "fill" not in said["auroc"]


class Counting(nn.Module):
    """A classifier that counts the frames it is given."""

    outputs = Outputs(kind="multiclass", names=("a", "b"))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double()
        self.seen = 0

    def forward(self, frames):
        self.seen += len(frames)
        return self.layers(frames)


@pytest.mark.parametrize(
    "name",
    ["deletion", "insertion", "insertion-deletion", "pid-4", "average-drop", "increase", "percentage-in"],
)
def test_several_references_cost_what_one_does_and_change_no_number(name):
    model, drawn = Counting(), torch.Generator().manual_seed(0)
    frames = torch.rand(3, 3, 16, 20, dtype=torch.float64, generator=drawn)
    saliency = torch.rand(3, 2, 16, 20, generator=drawn)
    ranks = rank(saliency.flatten(0, 1), drawn).unflatten(0, (3, 2))
    with torch.no_grad():
        clean = model(frames)
    batch = Batch(
        rows=np.arange(3),
        model=model,
        frames=frames,
        clean=clean,
        target=output(0),
        targets=["a"] * 3,
        quantity=PROBABILITY,
        references={each: OfClass(classes=torch.full((3,), at)) for at, each in enumerate("ab")},
        known={},
        causes=None,
    )
    maps = Maps(saliency, ranks, torch.zeros(3, 2, dtype=torch.bool))

    def measured(of: Batch) -> tuple[dict[str, Columns], int]:
        model.seen = 0
        found = dict(MEASURES[name](of, maps, Editing(fill="black", batch_size=8, seed=0)))
        return found, model.seen

    together, passes = measured(batch)
    assert passes > 0
    assert list(together) == ["a", "b"]
    for reference, value in batch.references.items():
        alone, passes_alone = measured(batch._replace(references={reference: value}))
        assert passes_alone == passes
        assert together[reference].keys() == alone[reference].keys()
        for column, numbers in alone[reference].items():
            assert torch.equal(together[reference][column], numbers)
    assert not torch.equal(together["a"]["value"], together["b"]["value"])


def test_patches_that_steer_have_the_lowest_score_in_degrees():
    """The wheel follows one white patch of twenty: an error of e degrees, there at once or only at the end."""
    frames = torch.zeros(1, 3, 16, 20)
    frames[:, :, 4:8, 8:12] = 1

    def steer(edited):
        return 0.02 * edited[:, 0, 4:8, 8:12].mean((1, 2))[:, None]

    clean, factor = steer(frames), torch.tensor([50.0], dtype=torch.float64)
    batch = Batch(
        rows=np.arange(1),
        model=steer,
        frames=frames,
        clean=clean,
        target=output(0),
        targets=["magnitude"],
        quantity=STEERING_ERROR,
        references={"clean": SteeringError(degrees_per_unit=factor, reference_deg=angle_deg(clean, factor))},
        known={},
        causes=None,
    )
    saliency = torch.stack([frames[:, 0], -frames[:, 0]], 1)
    ranks = rank(saliency.flatten(0, 1), torch.Generator().manual_seed(0)).unflatten(0, (1, 2))
    maps = Maps(saliency, ranks, torch.zeros(1, 2, dtype=torch.bool))
    ((reference, found),) = MEASURES["pid-4"](batch, maps, Editing(fill="black", batch_size=8, seed=0))
    assert reference == "clean"
    # Trapezoids over twentieths: an insertion's error ends within the first, a deletion's begins there.
    error_deg = 0.02 * 50
    expected = [[-0.95 * error_deg, 0.95 * error_deg]]
    torch.testing.assert_close(found["value"], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    said = MEASURES["pid-4"].describe(STEERING_ERROR)
    assert (said["unit"], said["faithful"]) == ("deg", "low")
