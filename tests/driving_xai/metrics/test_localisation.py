"""Localisation measures against scikit-learn, against definitions written out, and against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from driving_xai.metrics.curves import rank
from driving_xai.metrics.localisation import (
    auroc,
    average_precision,
    mass_inside,
    pointing_game,
    top_k_precision,
)

MEASURES = (pointing_game, mass_inside, top_k_precision, auroc, average_precision)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ranked(saliency: torch.Tensor, seed: int = 0):
    return saliency, rank(saliency, _generator(seed))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.95))
def test_rankings_are_scikit_learns(seed, share):
    saliency = torch.randn(1, 9, 11, generator=_generator(seed))
    causes = torch.rand(1, 9, 11, generator=_generator(seed + 1)) < share
    labels, scores = causes.flatten().numpy(), saliency.flatten().numpy()
    if labels.all() or not labels.any():
        return
    maps = _ranked(saliency)
    assert auroc(*maps, causes).value.item() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    expected = average_precision_score(labels, scores)
    assert average_precision(*maps, causes).value.item() == pytest.approx(expected, abs=1e-12)
    wanted = int(labels.sum())
    found = labels[np.argsort(-scores)[:wanted]].sum() / wanted
    assert top_k_precision(*maps, causes).value.item() == pytest.approx(found, abs=1e-12)


def test_mass_by_hand():
    saliency = torch.tensor([[[3.0, -5.0], [1.0, 0.0]]])
    causes = torch.tensor([[[True, True], [False, False]]])
    found = mass_inside(*_ranked(saliency), causes)
    assert (found.value.item(), found.chance.item()) == (0.75, 0.5)


@pytest.mark.parametrize(("row", "column", "hit"), [(4, 8, 1), (4, 9, 0), (6, 7, 1), (7, 8, 0), (2, 2, 0)])
def test_pointing_tolerates_a_euclidean_distance(row, column, hit):
    """From (4, 5), three pixels along are within 3; the corner (7, 8) is 4.2 away."""
    saliency, causes = torch.zeros(1, 12, 12), torch.zeros(1, 12, 12, dtype=torch.bool)
    saliency[0, row, column], causes[0, 4, 5] = 1, True
    found = pointing_game(*_ranked(saliency), causes, tolerance_px=3)
    reachable = sum(math.hypot(y - 4, x - 5) <= 3 for y in range(12) for x in range(12))
    assert found.value.item() == hit
    assert found.chance.item() == pytest.approx(reachable / 144)


@pytest.mark.parametrize("measure", MEASURES)
def test_chance_is_what_random_maps_reach(measure):
    saliency = torch.rand(4000, 6, 7, generator=_generator(1))
    causes = torch.zeros(1, 6, 7, dtype=torch.bool)
    causes[0, 1:3, 2:5] = True
    options = {"tolerance_px": 1} if measure is pointing_game else {}
    value, chance = measure(*_ranked(saliency), causes.expand(4000, -1, -1), **options)
    standard_error = value.std().item() / math.sqrt(4000)
    assert value.mean().item() == pytest.approx(chance[0].item(), abs=4 * standard_error)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_causes_themselves_are_the_best_map(measure):
    causes = torch.zeros(1, 9, 20, dtype=torch.bool)
    causes[0, 2:5, 1:4] = True
    to_the_right = torch.arange(20.0).expand(1, 9, -1)
    best = measure(*_ranked(causes.float()), causes).value
    elsewhere = measure(*_ranked(to_the_right * ~causes), causes).value
    assert best.item() == 1
    assert elsewhere.item() < 0.2


@pytest.mark.parametrize("measure", MEASURES)
def test_frames_without_causes_or_full_of_them_are_no_hits(measure):
    causes = torch.zeros(3, 4, 5, dtype=torch.bool)
    causes[1], causes[2, 0, 0] = True, True
    value, chance = measure(*_ranked(torch.rand(3, 4, 5, generator=_generator(0))), causes)
    assert value.isnan().tolist() == [True, True, False]
    assert chance.isnan().tolist() == [True, True, False]


def test_ties_cost_the_half_they_usually_cost():
    """Averaged over draws, a constant map has the AUROC of chance."""
    causes = torch.zeros(1, 5, 5, dtype=torch.bool)
    causes[0, :2] = True
    draws = [auroc(*_ranked(torch.zeros(1, 5, 5), seed), causes).value.item() for seed in range(600)]
    assert np.mean(draws) == pytest.approx(0.5, abs=0.02)
