"""What a score is worth to a measure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data_prep.records import VEHICLES
from driving_xai.cli.drives import MEASURES as listed
from driving_xai.data import degrees_per_unit
from driving_xai.faithfulness.measures import MEASURES, CurveMeasure, SteeringError, angle_deg
from driving_xai.faithfulness.pictures import PROBABILITY
from driving_xai.perturb import pixel_counts


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


def test_the_command_line_lists_the_measures_there_are():
    assert listed == tuple(MEASURES)
