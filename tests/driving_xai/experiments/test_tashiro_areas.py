"""Areas of several runs: pooled frame by frame, compared in pairs, tested as SciPy does."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from driving_xai.evaluation.results import Results
from driving_xai.experiments.tables import p_text
from driving_xai.experiments.tashiro_areas import Pool, compare, text_of


def results_of(method: str, areas: dict[int, float], shift: float = 0.0) -> Results:
    """One run's results: an area for each frame number; the base error is a tenth of it."""
    numbers = {
        "truth": lambda area: (area + shift, area + shift - 2.5 * area),
        "clean": lambda area: (area / 2, area / 2),
    }
    rows = [
        {"drive": "a", "camera": "front", "segment": 0, "frame": t, "time_ns": t * 10**9, "method": method,
         "measure": "deletion", "reference": reference, "value": of(area)[0], "error": area / 10,
         "base_corrected": of(area)[1], "curve": np.array([area, area + shift])}
        for reference, of in numbers.items() for t, area in areas.items()
    ]  # fmt: skip
    config = {"block_s": 2.0, "resamples": 200, "level": 0.95, "seed": 0, "methods": [method]}
    summary = {"plan": {"config": config}, "data": {"seconds_apart": 1.0}}
    return Results(summary=summary, per_frame=pd.DataFrame(rows))


def pool(*runs: Results, network: str = "sign", method: str = "m") -> Pool:
    return Pool.of(runs, network=network, method=method)


def test_a_frame_that_two_runs_held_out_counts_once() -> None:
    found = pool(results_of("m", {0: 1.0, 1: 3.0}), results_of("m", {1: 5.0, 2: 9.0}))
    assert found.frames["value"].tolist() == [1.0, 4.0, 9.0]
    assert found.frames["curve"].iloc[1].tolist() == [4.0, 4.0]
    assert found.per_run["value"] == (2.0, 7.0)
    assert found.bootstrap.block == 2
    summary = found.summary()
    assert summary["area"]["mean"] == pytest.approx(14 / 3)
    assert summary["mae_deg"] == pytest.approx(14 / 30)
    assert summary["area_by_run"] == [2.0, 7.0]
    assert summary["against_clean"]["mean"] == pytest.approx(14 / 6)


def test_frames_come_in_the_order_of_time_whatever_the_order_of_runs() -> None:
    early, late = results_of("m", {0: 1.0, 1: 2.0}), results_of("m", {5: 3.0, 6: 4.0})
    assert pool(late, early).frames["value"].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_methods_are_compared_on_the_frames_they_share() -> None:
    areas = np.random.default_rng(0).normal(100, 30, 40)
    every = pool(results_of("m", dict(enumerate(areas)), shift=5.0))
    second = pool(results_of("m", {t: area for t, area in enumerate(areas) if t % 2 == 0}))
    found = compare(every, second)
    assert found["frames"] == 20
    assert found["difference"]["mean"] == pytest.approx(5.0)
    assert found["difference"]["low"] == pytest.approx(5.0)
    assert found["ratio"] == pytest.approx(1 + 5.0 / areas[::2].mean())


def test_runs_are_tested_as_scipy_tests_them() -> None:
    generator = np.random.default_rng(1)
    ours, theirs = generator.normal(150, 20, (5, 30)), generator.normal(140, 20, (5, 30))
    pools = [
        pool(*(results_of("m", {1000 * run + t: a for t, a in enumerate(areas)}) for run, areas in enumerate(x)))
        for x in (ours, theirs)
    ]  # fmt: skip
    found = compare(*pools)
    means = ours.mean(1), theirs.mean(1)
    assert found["welch_p"] == pytest.approx(stats.ttest_ind(*means, equal_var=False).pvalue)
    assert found["paired_t_p"] == pytest.approx(stats.ttest_rel(*means).pvalue)
    difference = found["difference"]
    assert difference["mean"] == pytest.approx((means[0] - means[1]).mean())
    assert difference["low"] < difference["mean"] < difference["high"]


def test_one_run_gives_no_test_and_no_interval_below_eight_blocks() -> None:
    found = compare(
        pool(results_of("m", {0: 1.0, 1: 2.0})), pool(results_of("m", {0: 1.0, 1: 2.0}, shift=1.0))
    )
    assert found["welch_p"] is found["paired_t_p"] is found["wilcoxon_p"] is None
    assert found["difference"]["low"] is None
    assert text_of(found["difference"]) == "-1.0"
    assert (p_text(None), p_text(0.2), p_text(6.6e-5)) == ("-", "0.200", "6.6e-05")
