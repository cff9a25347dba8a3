"""Running means, rows on disk, and the summary."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import stats

from data_prep.schema import Frame
from driving_xai.evaluation.results import read_table
from driving_xai.evaluation.summary import summarise_differences, summarise_scores
from driving_xai.metrics.quantities import PROBABILITY
from driving_xai.metrics.statistics import BlockBootstrap
from driving_xai.replay import record
from driving_xai.replay.instruments import Steering
from driving_xai.replay.record import RunningMean, Tally, open_log, summarise, view_of
from driving_xai.replay.scoring import FRACTIONS, Curves, Judged
from driving_xai.replay.source import SourceFrame

IMAGE = np.zeros((4, 4, 3), np.uint8)


def curves(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.random((count, len(FRACTIONS))), 1)


def frame(number: int, *, random: bool = True, truth: float = 1.5) -> Judged:
    against_clean, of_random = curves(2, seed=number)
    shift = 0.5 if math.isfinite(truth) else math.nan
    seen = SourceFrame(
        Frame(
            index=number, time_ns=10**18 + number, image=IMAGE, steering_wheel_rad=truth, speed_mps=math.nan
        ),
        truth,
        math.nan,
        number // 50,
        False,
        "",
    )
    return Judged(
        seen,
        np.ones((2, 2), np.float32) if number == 7 else np.eye(2, dtype=np.float32),
        Steering(2.0 + number / 10, 0.001),
        Steering(truth, 0.001),
        Curves(against_clean + shift, against_clean),
        Curves(of_random + shift, of_random) if random else None,
    )


def area_of(curve: np.ndarray) -> float:
    return float(np.trapezoid(curve, 100 * np.array(FRACTIONS)))


class TestRunningMean:
    def test_it_is_the_mean(self) -> None:
        many, running = curves(57), RunningMean(block=10)
        for curve in many:
            running.add(curve)
        np.testing.assert_allclose(running.curve, many.mean(0))
        assert running.area == pytest.approx(np.mean([area_of(curve) for curve in many]))

    def test_its_interval_is_students_of_the_block_means(self) -> None:
        many, running = curves(57), RunningMean(block=10)
        for number, curve in enumerate(many):
            assert math.isnan(running.half_width()) == (number < 50)
            running.add(curve)
        blocks = np.array([area_of(curve) for curve in many[:50]]).reshape(5, 10).mean(1)
        low, high = stats.t.interval(0.95, 4, loc=blocks.mean(), scale=stats.sem(blocks))
        assert running.half_width() == pytest.approx((high - low) / 2)

    def test_frames_without_a_reference_are_left_out(self) -> None:
        running = RunningMean(block=2)
        for curve in (curves(1)[0], np.full(len(FRACTIONS), np.nan)):
            running.add(curve)
        assert running.frames == 1
        np.testing.assert_allclose(running.curve, curves(1)[0])

    def test_a_probability_has_the_mean_height_for_an_area_and_no_interval_without_blocks(self) -> None:
        many, running = curves(57), RunningMean(quantity=PROBABILITY)
        for curve in many:
            running.add(curve)
        heights = [np.mean((curve[1:] + curve[:-1]) / 2) for curve in many]
        assert running.area == pytest.approx(np.mean(heights))
        assert math.isnan(running.half_width())
        view = view_of(many[0], running, RunningMean(quantity=PROBABILITY))
        assert (view.area, view.frames) == (pytest.approx(heights[0]), 57)
        assert np.isnan([view.random_area, *view.random_mean]).all()


def logged(path: Path, frames: list[Judged], method: str = "sign-attention", control_every: int = 1) -> Tally:
    tally = Tally(block=10, control_every=control_every)
    with open_log(path, method=method, target="magnitude", drive="a", camera="center") as log:
        for each in frames:
            tally.add(each)
            log.add(each)
    return tally


def test_rows_say_what_was_judged(tmp_path: Path) -> None:
    path = tmp_path / "per_frame.parquet"
    logged(path, [frame(7), frame(8, random=False), frame(9, truth=math.nan)])
    table = read_table(path)
    assert len(table) == 4 + 2 + 4
    first = table.iloc[0]
    expected = frame(7)
    assert (first["method"], first["reference"], first["frame"]) == ("sign-attention", "truth", 7)
    np.testing.assert_allclose(first["curve"], expected.explained.truth, rtol=1e-6)
    assert first["value"] == pytest.approx(area_of(expected.explained.truth))
    assert first["normalised"] == pytest.approx(first["value"] / 25)
    assert first["base_corrected"] == pytest.approx(first["value"] - 25 * expected.explained.truth[0])
    assert first["error"] == pytest.approx(abs(2.7 - 1.5))
    assert table["degenerate"].tolist() == [True, True] + [False] * 8, "the method's map of frame 7 alone"
    unknown = table[(table["frame"] == 9) & (table["reference"] == "truth")]
    assert unknown[["truth", "error", "value"]].isna().all(axis=None)
    assert unknown["curve"].isna().all()


def test_rows_leave_memory_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_ROWS_PER_GROUP", 40)
    path, pending = tmp_path / "per_frame.parquet", []
    with open_log(path, method="m", target="left", drive="a", camera="c") as log:
        for number in range(100):
            log.add(frame(number))
            pending.append(len(log._rows))
    assert max(pending) < 40
    assert pq.ParquetFile(path).num_row_groups == 10
    assert read_table(path)["frame"].tolist() == np.repeat(np.arange(100), 4).tolist()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_log_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def work() -> None:
        with open_log(
            tmp_path / "v.scores" / "rows.parquet", method="m", target="left", drive="a", camera="c"
        ) as log:
            log.add(frame(1))
            raise error

    with pytest.raises(error):
        work()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("control_every", [1, 4])
def test_the_summary_is_that_of_scoring_the_same_rows(tmp_path: Path, control_every: int) -> None:
    frames = [frame(number, random=number % control_every == 0) for number in range(120)]
    path = tmp_path / "per_frame.parquet"
    tally = logged(path, frames, control_every=control_every)
    bootstrap = BlockBootstrap(block=8, resamples=200)
    found = summarise(path, tally, "sign-attention", bootstrap, fill="blur")
    assert found["measures"]["deletion"]["fill"] == "blur"
    sparse = BlockBootstrap(block=8 // control_every, resamples=200)
    table = read_table(path)
    expected = {
        (each["method"], each["reference"]): each
        for method, drawn in (("sign-attention", bootstrap), ("random", sparse))
        for each in summarise_scores(table[table["method"] == method], drawn)
    }
    assert len(found["scores"]) == len(expected) == 4
    for entry in found["scores"]:
        same = expected[entry["method"], entry["reference"]]
        np.testing.assert_allclose(entry.pop("curve"), same.pop("curve"), rtol=1e-5)
        assert entry == same
    scored_alike = table[table["frame"] % control_every == 0]
    for entry, same in zip(
        found["differences"], summarise_differences(scored_alike, ["random"], sparse), strict=True
    ):
        assert entry == same


def test_random_maps_are_their_own_control(tmp_path: Path) -> None:
    path = tmp_path / "per_frame.parquet"
    tally = logged(path, [frame(number, random=False) for number in range(5)], method="random")
    found = summarise(path, tally, "random", BlockBootstrap(block=2), fill="black")
    assert [entry["method"] for entry in found["scores"]] == ["random", "random"]
    assert found["differences"] == []


def test_a_drive_without_truth_has_scores_against_the_clean_prediction_only(tmp_path: Path) -> None:
    path = tmp_path / "per_frame.parquet"
    tally = logged(path, [frame(number, truth=math.nan) for number in range(12)])
    found = summarise(path, tally, "sign-attention", BlockBootstrap(block=2), fill="black")
    known = {(entry["method"], entry["reference"]): entry["frames"] for entry in found["scores"]}
    assert known == {
        ("sign-attention", "truth"): 0,
        ("random", "truth"): 0,
        ("sign-attention", "clean"): 12,
        ("random", "clean"): 12,
    }
    assert found["prediction"]["error"]["mean"] is None


def test_the_inset_shows_the_frame_and_the_means(tmp_path: Path) -> None:
    tally = Tally(block=2, control_every=1)
    for number in range(10):
        tally.add(frame(number))
    view = tally.view(frame(7), "truth")
    np.testing.assert_array_equal(view.current, frame(7).explained.truth)
    np.testing.assert_allclose(view.mean, np.mean([frame(n).explained.truth for n in range(10)], 0))
    np.testing.assert_allclose(view.random_mean, np.mean([frame(n).random.truth for n in range(10)], 0))
    assert view.area == pytest.approx(area_of(view.current))
    assert pd.notna(view.half_width)
