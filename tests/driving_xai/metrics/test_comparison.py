"""Tests and effect sizes against SciPy, slow twins and known answers; false findings by simulation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from driving_xai.evaluation.summary import summarise_comparisons, summarise_ranks
from driving_xai.metrics import comparison
from driving_xai.metrics.comparison import (
    block_means,
    cliffs_delta,
    cohens_d,
    cohens_dz,
    holm,
    places,
    signed_rank,
    student,
    welch,
)
from driving_xai.metrics.statistics import BlockBootstrap

numbers = st.lists(st.integers(-4, 4), min_size=2, max_size=12).map(lambda each: np.array(each, dtype=float))


def _drives(seed: int, drives: int, count: int, memory: float) -> np.ndarray:
    """AR(1) series with mean 0 and variance 1."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(drives, count)) * math.sqrt(1 - memory**2)
    noise[:, 0] = generator.normal(size=drives)
    values = noise.copy()
    for t in range(1, count):
        values[:, t] = memory * values[:, t - 1] + noise[:, t]
    return values


@given(count=st.integers(0, 60), block=st.integers(1, 12))
def test_blocks_are_long_enough_and_leave_nothing_out(count, block):
    values = np.random.default_rng(count).normal(size=count)
    means = block_means(values, block)
    assert len(means) == count // block
    lengths = [len(part) for part in np.array_split(values, max(1, len(means)))]
    if len(means):
        assert min(lengths) >= block
        assert np.dot(means, lengths) == pytest.approx(values.sum(), abs=1e-12)


def test_signed_rank_on_single_frames_is_scipys():
    differences = np.random.default_rng(0).normal(0.3, size=20)
    found = signed_rank(differences, 1)
    assert found.p == stats.wilcoxon(differences).pvalue
    assert found.blocks == 20


@settings(deadline=None)
@given(differences=st.lists(st.integers(-3, 3), min_size=8, max_size=20))
def test_the_rank_biserial_is_the_share_of_rank_sums(differences):
    """Slow twin: rank by counting, then sum each side."""
    rank = {d: sum(abs(o) < abs(d) for o in differences) for d in differences}
    rank = {d: below + (sum(abs(o) == abs(d) for o in differences) + 1) / 2 for d, below in rank.items()}
    favour, against = (sum(rank[d] for d in differences if d * side > 0) for side in (1, -1))
    expected = (favour - against) / sum(rank[d] for d in differences) if any(differences) else 0
    assert signed_rank(np.array(differences, float), 1).rank_biserial == pytest.approx(expected)


def test_equal_methods_do_not_differ_and_few_blocks_say_nothing():
    found = signed_rank(np.zeros(80), 10)
    assert (found.p, found.rank_biserial, found.blocks) == (1.0, 0.0, 8)
    assert signed_rank(np.ones(79), 10) is None
    always = signed_rank(np.linspace(1, 2, 80), 10)
    assert always.p == pytest.approx(2 / 2**8)
    assert always.rank_biserial == 1


def test_blocks_find_as_little_as_they_may_where_frames_find_what_is_not_there():
    """Of drives without a difference, the share that the test calls different at 5 %."""
    drives = _drives(3, 300, 2000, 0.9)
    on_blocks = np.mean([signed_rank(drive, 100).p <= 0.05 for drive in drives])
    on_frames = np.mean([stats.wilcoxon(drive).pvalue <= 0.05 for drive in drives[:60]])
    assert on_blocks <= 0.09
    assert on_frames > 0.5


def test_holm_by_hand_and_its_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_stepping_down_rejects(p_values):
    level, remaining, rejected = 0.05, list(range(len(p_values))), set()
    for index in sorted(remaining, key=lambda i: p_values[i]):
        if p_values[index] * (len(p_values) - len(rejected)) > level:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected


def test_students_interval_is_scipys_and_that_of_paired_differences():
    generator = np.random.default_rng(1)
    ours, theirs = generator.normal(1, 2, size=8), generator.normal(0, 1, size=8)
    found = student(ours - theirs, level=0.9)
    bounds = stats.ttest_rel(ours, theirs).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high))
    assert found.mean == pytest.approx((ours - theirs).mean())
    assert student(ours[:1]) is None


def test_welch_is_scipys_with_its_interval():
    generator = np.random.default_rng(1)
    ours, theirs = generator.normal(1, 2, size=5), generator.normal(0, 1, size=8)
    expected = stats.ttest_ind(ours, theirs, equal_var=False)
    found = welch(ours, theirs, level=0.9)
    bounds = expected.confidence_interval(0.9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert found.degrees_of_freedom == pytest.approx(expected.df)
    assert (found.difference.low, found.difference.high) == pytest.approx((bounds.low, bounds.high))
    assert found.difference.mean == pytest.approx(ours.mean() - theirs.mean())
    assert found.cohens_d == cohens_d(ours, theirs)


def test_welch_without_spread_and_with_too_few():
    assert welch(np.array([1.0]), np.array([1.0, 2.0])) is None
    same, apart = welch(np.ones(3), np.ones(2)), welch(np.ones(3), np.zeros(2))
    assert (same.p, same.cohens_d, same.difference.low) == (1.0, 0.0, 0.0)
    assert (apart.p, apart.cohens_d, apart.difference.low) == (0.0, math.inf, 1.0)


def test_cohens_by_hand():
    assert cohens_d(np.array([2.0, 4.0]), np.array([0.0, 2.0])) == pytest.approx(2 / math.sqrt(2))
    assert cohens_dz(np.array([1.0, 3.0])) == pytest.approx(2 / math.sqrt(2))
    assert cohens_dz(np.array([-1.0, -1.0])) == -math.inf


@given(ours=numbers, theirs=numbers)
def test_cliffs_delta_counts_pairs(ours, theirs):
    expected = np.mean([np.sign(a - b) for a in ours for b in theirs])
    assert cliffs_delta(ours, theirs) == pytest.approx(expected)
    assert cliffs_delta(theirs, ours) == pytest.approx(-expected)


def test_places_of_what_is_clear_and_of_what_is_not():
    """The first is above the others everywhere; the other two are each other's noise."""
    drive = _drives(5, 3, 800, 0.8)
    values = np.stack([drive[0] + 5, drive[0] + 0.1 * drive[1], drive[0] + 0.1 * drive[2]], 1)
    best, *others = places(values, "high", BlockBootstrap(block=40, resamples=300))
    assert (best.rank, best.low, best.high, best.first) == (1, 1, 1, 1)
    assert all((each.low, each.high, each.first) == (2, 3, 0) for each in others)
    reverse = places(values, "low", BlockBootstrap(block=40, resamples=300))
    assert (reverse[0].rank, reverse[0].low, reverse[0].first) == (3, 3, 0)


def test_places_are_the_ranks_of_each_resampled_drive():
    values = np.random.default_rng(2).normal(size=(40, 3))
    bootstrap = BlockBootstrap(block=2, resamples=50, level=0.8, seed=4)
    rows = np.array(
        [
            [values[[s + step for s in starts for step in range(2)]][:40, m].mean() for m in range(3)]
            for starts in bootstrap.starts(40)
        ]
    )
    ranks = 1 + (rows[:, None, :] < rows[:, :, None]).sum(2)
    for m, place in enumerate(places(values, "low", bootstrap)):
        assert (place.low, place.high) == pytest.approx(
            tuple(np.quantile(ranks[:, m], [0.1, 0.9], method="inverted_cdf"))
        )
        assert place.first == pytest.approx((ranks[:, m] == 1).mean())


def test_methods_that_agree_everywhere_share_their_place():
    found = places(np.ones((8, 2)), "high", BlockBootstrap(block=1, resamples=20))
    assert [(each.rank, each.low, each.first) for each in found] == [(1.5, 1.5, 1.0)] * 2
    assert places(np.ones((7, 2)), "high", BlockBootstrap(block=1, resamples=20)) is None


def _rows(values: dict[str, np.ndarray]) -> pd.DataFrame:
    names = {
        "drive": "a",
        "camera": "front",
        "segment": 0,
        "measure": "deletion",
        "reference": "truth",
        "key": "",
        "target": "",
    }
    tables = []
    for method, given_values in values.items():
        frames = np.arange(len(given_values))
        tables.append(
            pd.DataFrame(
                {
                    **names,
                    "key": "",
                    "target": "left",
                    "frame": frames,
                    "time_ns": frames,
                    "method": method,
                    "value": given_values,
                }
            )
        )
    return pd.concat(tables)


def test_comparisons_of_a_table_pair_by_frame_and_correct_within_a_measure():
    generator = np.random.default_rng(6)
    control = generator.normal(size=100)
    table = _rows(
        {"a": control + 1 + 0.1 * generator.normal(size=100), "b": control + 0.01, "random": control}
    )
    bootstrap = BlockBootstrap(block=10, resamples=200)
    found = {
        (pair["method"], pair["other"]): pair for pair in summarise_comparisons(table, ["random"], bootstrap)
    }
    assert list(found) == [("a", "b"), ("a", "random"), ("b", "random")]
    near = found["b", "random"]
    assert near["value"]["low"] == pytest.approx(0.01)
    assert (near["blocks"], near["rank_biserial"], near["frames"]) == (10, 1.0, 100)
    assert near["cliffs_delta"] < 0.1
    beside = [found["a", "random"], near]
    assert [pair["p_holm"] for pair in beside] == holm([pair["p"] for pair in beside]), (
        "a family of their own"
    )
    assert found["a", "b"]["p_holm"] == found["a", "b"]["p"], "the only pair without a control"
    shuffled = summarise_comparisons(
        table.sample(frac=1, random_state=0).sort_values("time_ns"), ["random"], bootstrap
    )
    assert {frozenset((p["method"], p["other"])) for p in shuffled} == {frozenset(key) for key in found}


def test_blocks_stay_as_long_in_time_where_the_control_is_sparse():
    values = np.random.default_rng(7).normal(size=1000)
    control = np.where(np.arange(1000) % 10 == 0, 0.0, np.nan)
    (pair,) = summarise_comparisons(
        _rows({"a": values, "random": control}), ["random"], BlockBootstrap(block=100, resamples=50)
    )
    assert (pair["frames"], pair["blocks"]) == (100, 10)
    assert pair["p"] == signed_rank(values[::10], 10).p


def test_few_frames_give_a_reason_instead_of_a_number():
    table = _rows({"a": np.array([1.0, np.nan]), "random": np.array([0.0, 0.0])})
    bootstrap = BlockBootstrap(block=1, resamples=20)
    (pair,) = summarise_comparisons(table, ["random"], bootstrap)
    assert (pair["p"], pair["p_holm"], pair["cohens_dz"]) == (None, None, None)
    assert pair["reason"] == "1 frames are fewer than 8 blocks of 1"
    (ranks,) = summarise_ranks(table, {"deletion": {"faithful": "high"}}, bootstrap)
    assert ranks["places"] is None
    assert "fewer than 8 blocks" in ranks["reason"]


def test_ranks_of_a_table_are_on_the_frames_that_all_methods_have():
    values = np.random.default_rng(8).normal(size=40)
    holed = np.where(np.arange(40) < 4, np.nan, values - 1)
    table = _rows({"a": values, "b": holed, "random": values - 2})
    bootstrap = BlockBootstrap(block=4, resamples=30)
    (ranks,) = summarise_ranks(table, {"deletion": {"faithful": "high"}}, bootstrap)
    assert ranks["frames"] == 36
    assert [(place["method"], place["rank"]) for place in ranks["places"]] == [
        ("a", 1),
        ("b", 2),
        ("random", 3),
    ]
    (reverse,) = summarise_ranks(table, {"deletion": {"faithful": "low"}}, bootstrap)
    assert reverse["places"][0]["rank"] == 3


def test_what_is_said_of_blocks_holds_here_too(monkeypatch):
    """The least number of blocks is one constant."""
    monkeypatch.setattr(comparison, "LEAST_BLOCKS", 3)
    assert signed_rank(np.arange(3.0), 1) is not None
