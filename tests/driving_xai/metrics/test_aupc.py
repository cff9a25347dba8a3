"""Accuracy under masking: rules, sums and intervals by hand, and the paper's own table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from driving_xai.metrics.aupc import accuracies, aupc, interval, log_odds
from driving_xai.metrics.statistics import BlockBootstrap

# Zhu et al. 2024, Table 1: AUPC and log-odds by mask, for RawAtt, AttGrad, AttIN, GenericAtt, AttIG, SNNA.
TABLE_1 = {
    "pixel": [(672.95, -1.06), (669.8, -1.09), (661.15, -1.23), (654.52, -1.33), (651.65, -1.37), (644.45, -1.49)],
    "token": [(680.97, -0.92), (666.0, -1.15), (658.38, -1.26), (652.55, -1.35), (653.1, -1.34), (643.02, -1.5)],
    "attention": [(711.05, -0.48), (672.55, -1.05), (652.8, -1.35), (653.22, -1.35), (656.4, -1.3), (649.67, -1.4)],
}  # fmt: skip
CLEAN = 0.7465


@pytest.mark.parametrize(("area", "odds"), [cell for row in TABLE_1.values() for cell in row])
def test_every_cell_of_the_papers_table_is_a_possible_pair(area, odds):
    """Curves of one area lie between a drop at once, whose log-odds are highest, and a straight fall."""
    at_once = np.array([CLEAN, *[(area / 100 - CLEAN) / 9] * 9])
    straight = CLEAN - (10 * CLEAN - area / 100) / 45 * np.arange(10)
    for curve in (at_once, straight):
        assert aupc(curve) == pytest.approx(area)
    assert log_odds(straight) - 0.005 <= odds <= log_odds(at_once) + 0.015
    # As they would be of logarithms to base 10, or of nine points.
    assert not log_odds(straight) - 0.005 <= odds * math.log(10) <= log_odds(at_once) + 0.015
    assert not log_odds(straight[:9]) - 0.005 <= odds <= log_odds(at_once[:9]) + 0.015


def test_rules_differ_where_they_should():
    scores = torch.tensor([[[0.2, 0.7, -0.3, -2.0], [0.2, 3.0, 0.1, -0.1]]])
    labels = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert accuracies(scores, labels).tolist() == [[1.0, 0.75]]
    assert accuracies(scores, labels, rule="logit").tolist() == [[0.75, 0.75]]
    # Softmax names at most one: .38 of the first, .86 of the second variant.
    assert accuracies(scores, labels, rule="softmax").tolist() == [[0.5, 0.75]]


def test_accuracies_of_methods_and_points_keep_their_places():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 3, 7, 4, generator=generator)
    labels = (torch.rand(5, 4, generator=generator) > 0.5).float()
    found = accuracies(scores, labels)
    for place in np.ndindex(5, 3, 7):
        right = [
            (score > 0) == (label == 1) for score, label in zip(scores[place], labels[place[0]], strict=True)
        ]
        assert found[place] == sum(right) / 4


def test_sums_by_hand():
    curve = np.array([0.8, 0.4, 0.2])
    assert aupc(curve) == pytest.approx(140)
    assert log_odds(curve) == pytest.approx(math.log(1 / 2) + math.log(1 / 4))
    assert log_odds(np.array([0.5, 0.5, 0.5])) == 0
    assert log_odds(np.array([0.5, 0.0])) == -math.inf


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("statistic", [aupc, log_odds])
def test_intervals_are_of_resampled_curves_and_pairs_share_their_frames(statistic, block):
    generator = np.random.default_rng(0)
    first, second = generator.uniform(0.2, 1, (2, 40, 5))
    bootstrap = BlockBootstrap(block=block, resamples=50, seed=3)
    starts = bootstrap.starts(40)
    chosen = [np.concatenate([np.arange(start, start + block) for start in drawn])[:40] for drawn in starts]
    drawn = [statistic(first[frames].mean(0)) - statistic(second[frames].mean(0)) for frames in chosen]
    found = interval(statistic, first, bootstrap, against=second)
    assert found.mean == pytest.approx(statistic(first.mean(0)) - statistic(second.mean(0)))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    alone = [statistic(first[frames].mean(0)) for frames in chosen]
    found = interval(statistic, first, bootstrap)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(alone, [0.025, 0.975])))
    assert interval(statistic, first[: 8 * block - 1], bootstrap) is None
