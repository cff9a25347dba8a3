"""The report's numbers against numbers counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from data_prep import quality
from data_prep.errors import DataError


def report(rows: pd.DataFrame) -> dict:
    return quality.of_drive(
        rows,
        frames_read=9,
        dropped={"duplicate": 2, "no_control": 0},
        left_out={},
        signal_samples_dropped={"speed": 1},
    )


def rows_of(ms, degrees) -> pd.DataFrame:
    count = len(ms)
    return pd.DataFrame(
        {
            "time_ns": np.array(ms, dtype=np.int64) * 1_000_000,
            "segment": 0,
            "split": ["train"] * (count - 1) + ["test"],
            "block": [0] * (count - 1) + [1],
            "steering_wheel_rad": np.radians(np.array(degrees, dtype=float)),
        }
    )


def test_counts_rate_and_gap():
    made = report(rows_of([0, 50, 100, 150, 350], [0.5, -3.0, 12.0, 200.0, -4.0]))
    assert (made["read"], made["kept"], made["dropped"]) == (9, 5, {"duplicate": 2})
    assert made["by_split"] == {"test": 1, "train": 4}
    assert (made["rate_hz"], made["longest_gap_s"], made["duration_s"]) == (20.0, 0.2, 0.35)
    assert made["zero_predictor_mae_deg_by_block"] == {"0": 53.875, "1": 4.0}
    histogram = made["label_histogram"]
    assert len(histogram["counts"]) == len(histogram["edges_deg"]) + 1
    assert sum(histogram["counts"]) == 5
    assert histogram["counts"][-1] == 1  # 200 degrees lies past the last edge
    assert histogram["counts"][histogram["edges_deg"].index(-5.0) + 1] == 2  # -3 and -4


def test_jitter_is_half_the_spread_of_the_usual_steps():
    steps = np.where(np.arange(1000) % 2 == 0, 48, 52)
    made = report(rows_of(np.concatenate([[0], np.cumsum(steps)]), np.zeros(1001)))
    assert made["jitter_ms"] == 2.0


def test_unlabelled_and_single_frames():
    made = report(rows_of([0], [math.nan]))
    assert made["label_histogram"] is None
    assert made["rate_hz"] is None


def test_a_group_in_two_splits_is_counted():
    rows = pd.DataFrame(
        {"group": ["a", "a", "b", "c"], "split": ["train", "test", "val", "train"], "stop": [1, 0, 0, 1]}
    )
    missing = {"missing_image": ("1", "2", "3", "4")}
    made = quality.of_images(
        rows, ("stop",), images_read=5, left_out=missing, dropped={"undecodable_image": 1}
    )
    assert made["groups_in_several_splits"] == 1
    assert made["labels"] == {"stop": {"0": 2, "1": 2}}
    assert made["left_out"] == {"missing_image": {"count": 4, "first": ["1", "2", "3"]}}


GOOD = {
    "sequences": {
        "read": 2,
        "kept": 2,
        "dropped": {},
        "left_out": {"bad": {"count": 1, "first": ["a"]}},
        "by_split": {"test": 2},
        "segments": 1,
        "rate_hz": 20.0,
        "jitter_ms": None,
        "longest_gap_s": None,
        "label_histogram": None,
    },
    "images": {
        "read": 2,
        "kept": 2,
        "dropped": {},
        "left_out": {},
        "by_split": {"test": 2},
        "labels": {"cat": {"1": 2}},
    },
}


@pytest.mark.parametrize("kind", ["sequences", "images"])
def test_a_report_that_cannot_be_shown_is_refused_by_the_key(kind):
    quality.check(kind, {"a": GOOD[kind]})
    for key in GOOD[kind]:
        for wrong in ({k: v for k, v in GOOD[kind].items() if k != key}, GOOD[kind] | {key: "text"}):
            with pytest.raises(DataError, match=f"the quality report of 'a': {key} is"):
                quality.check(kind, {"a": wrong})
    with pytest.raises(DataError, match="the quality report of 'a' is 3"):
        quality.check(kind, {"a": 3})
