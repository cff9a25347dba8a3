"""No frame stands near one of another part, and the order of drives changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.split import BlockSplit, DriveSplit


@given(blocks=st.integers(3, 7), gap_s=st.floats(0, 3), frames=st.integers(800, 1200), seed=st.integers(0, 9))
def test_parts_are_apart_by_the_gap_and_in_order(blocks, gap_s, frames, seed):
    rng = np.random.default_rng(seed)
    time_ns = 10**18 + np.cumsum(rng.integers(30_000_000, 90_000_000, frames))
    split = BlockSplit(blocks=blocks, gap_s=gap_s)
    part = split.parts(time_ns)
    times = {name: time_ns[part == name] for name in ("train", "val", "test")}
    gap_ns = round(gap_s * 1e9)
    assert times["val"].min() - times["train"].max() >= gap_ns
    assert times["test"].min() - times["val"].max() >= gap_ns
    sizes = np.bincount(split.numbers(frames))
    assert len(sizes) == blocks
    assert sizes.max() - sizes.min() <= 1


def test_the_gap_is_no_wider_than_asked_for():
    time_ns = np.arange(100, dtype=np.int64) * 10**9
    part = BlockSplit(blocks=5, gap_s=2.0).parts(time_ns)
    # Boundaries at 59|60 and 79|80: frames 58 and 61 are 2 s from the other side and stay.
    # The measure is to the other part's nearest frame, so one frame a side is too near at 1 s.
    assert part[58:62].tolist() == ["train", "gap", "gap", "val"]
    assert part[78:82].tolist() == ["val", "gap", "gap", "test"]
    assert (part == "gap").sum() == 4


def test_a_split_that_leaves_a_part_empty_is_refused():
    with pytest.raises(DataError, match=r"4\.9 s .* no frame for val and test"):
        BlockSplit().parts(np.arange(99, dtype=np.int64) * 50_000_000)
    with pytest.raises(DataError, match="cannot be cut into 5"):
        BlockSplit().numbers(4)
    with pytest.raises(DataError, match="3 or more"):
        BlockSplit(blocks=2)
    with pytest.raises(DataError, match="gap_s"):
        BlockSplit(gap_s=float("nan"))


@given(st.permutations([f"drive-{i}" for i in range(11)]), st.integers(0, 20))
def test_drives_go_whole_and_in_any_order(drives, seed):
    parts = DriveSplit(seed=seed).parts(drives)
    assert parts == DriveSplit(seed=seed).parts(sorted(drives))
    counts = [list(parts.values()).count(part) for part in ("train", "val", "test")]
    assert counts == [7, 2, 2]


def test_the_seed_chooses_the_drives():
    drives = [f"drive-{i}" for i in range(20)]
    assert DriveSplit(seed=0).parts(drives) != DriveSplit(seed=1).parts(drives)


def test_named_drives():
    split = DriveSplit(val=("b",), test=("c",))
    assert split.parts(["a", "b", "c", "d"]) == {"a": "train", "b": "val", "c": "test", "d": "train"}
    for bad, message in (
        (DriveSplit(val=("x",)), "no drive is named x"),
        (DriveSplit(val=("a",), test=("a",)), "name it once"),
        (DriveSplit(test=("a", "b", "c")), "none to train on"),
    ):
        with pytest.raises(DataError, match=message):
            bad.parts(["a", "b", "c"])
    with pytest.raises(DataError, match="split block"):
        DriveSplit().parts(["a", "b"])
