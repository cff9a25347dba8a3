"""No frame stands near one of another part, and the order of drives changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.split import (
    UNIX_FROM_NS,
    BlockSplit,
    DriveSplit,
    OnePart,
    Timeline,
    clock_names,
    near_on_clock,
)


def line(drive: str, time_ns: np.ndarray, recording: str = "") -> Timeline:
    return Timeline(drive=drive, recording=recording or drive, time_ns=time_ns)


def part_of_one(split: BlockSplit, time_ns: np.ndarray) -> np.ndarray:
    return split.divide([line("drive", time_ns)])[0].part


def seconds_apart(times: list[np.ndarray], parts: list[np.ndarray]) -> float:
    """The least time between frames of two parts that are used, the slow way."""
    used = [(t, p) for ts, ps in zip(times, parts, strict=True) for t, p in zip(ts, ps, strict=True)]
    pairs = [
        abs(int(t) - int(u))
        for k, (t, p) in enumerate(used)
        for u, q in used[:k]
        if p != q and "gap" not in (p, q)
    ]
    return min(pairs, default=10**30) / 1e9


@given(blocks=st.integers(3, 7), gap_s=st.floats(0, 3), frames=st.integers(800, 1200), seed=st.integers(0, 9))
def test_parts_are_apart_by_the_gap_and_in_order(blocks, gap_s, frames, seed):
    rng = np.random.default_rng(seed)
    time_ns = 10**18 + np.cumsum(rng.integers(30_000_000, 90_000_000, frames))
    split = BlockSplit(blocks=blocks, gap_s=gap_s)
    part = part_of_one(split, time_ns)
    times = {name: time_ns[part == name] for name in ("train", "val", "test")}
    gap_ns = round(gap_s * 1e9)
    assert times["val"].min() - times["train"].max() >= gap_ns
    assert times["test"].min() - times["val"].max() >= gap_ns
    sizes = np.bincount(split.numbers(frames))
    assert len(sizes) == blocks
    assert sizes.max() - sizes.min() <= 1


def test_the_gap_is_no_wider_than_asked_for():
    time_ns = np.arange(100, dtype=np.int64) * 10**9
    part = part_of_one(BlockSplit(blocks=5, gap_s=2.0), time_ns)
    # Boundaries at 59|60 and 79|80: frames 58 and 61 are 2 s from the other side and stay.
    # The measure is to the other part's nearest frame, so one frame a side is too near at 1 s.
    assert part[58:62].tolist() == ["train", "gap", "gap", "val"]
    assert part[78:82].tolist() == ["val", "gap", "gap", "test"]
    assert (part == "gap").sum() == 4


def test_a_split_that_leaves_a_part_empty_is_refused():
    with pytest.raises(DataError, match=r"4\.9 s .* no frame for val and test"):
        part_of_one(BlockSplit(), np.arange(99, dtype=np.int64) * 50_000_000)
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


def recorded(frames: int, *, since_s: float, period_s: float = 0.05, base: int = UNIX_FROM_NS) -> np.ndarray:
    return base + np.round((since_s + period_s * np.arange(frames)) * 1e9).astype(np.int64)


@pytest.mark.parametrize("split", [BlockSplit(gap_s=0.3), DriveSplit(val=("b",), test=("c",), gap_s=0.3)])
def test_recordings_that_follow_each_other_are_apart_at_the_seam(split):
    times = [recorded(80, since_s=4.0 * number) for number in range(3)]
    lines = [line(name, time_ns) for name, time_ns in zip("abc", times, strict=True)]
    parts = [division.part for division in split.divide(lines)]
    assert seconds_apart(times, parts) >= 0.3
    # The files are 50 ms apart: the frames 50 to 250 ms from the other's first are too near, the next is not.
    for before, after in ((0, 1), (1, 2)):
        assert (parts[before][-5:] == "gap").all()
        assert (parts[after][:5] == "gap").all()
        assert parts[before][-6] != "gap" != parts[after][5]


@given(
    starts=st.lists(st.integers(0, 200), min_size=3, max_size=5),
    gap_s=st.sampled_from([0.0, 0.1, 0.35]),
    seed=st.integers(0, 9),
)
def test_no_two_parts_are_nearer_than_the_gap_however_drives_lie_in_time(starts, gap_s, seed):
    times = [recorded(12, since_s=start / 10) for start in starts]
    names = [f"drive-{number}" for number in range(len(starts))]
    lines = [line(name, time_ns) for name, time_ns in zip(names, times, strict=True)]
    try:
        parts = [division.part for division in DriveSplit(seed=seed, gap_s=gap_s).divide(lines)]
    except DataError:
        return  # the drives lie over each other
    assert seconds_apart(times, parts) >= gap_s


def test_clocks_of_their_own_are_not_compared():
    times = [recorded(80, since_s=0, base=0) for _ in range(3)]
    lines = [line(name, time_ns) for name, time_ns in zip("abc", times, strict=True)]
    divided = DriveSplit(val=("b",), test=("c",)).divide(lines)
    assert [set(division.part) for division in divided] == [{"train"}, {"val"}, {"test"}]
    assert clock_names([*lines, line("d", times[0] + UNIX_FROM_NS)]) == {
        "a": "own",
        "b": "own",
        "c": "own",
        "d": "unix",
    }


@pytest.mark.parametrize("base", [0, UNIX_FROM_NS])
def test_the_cameras_of_an_instant_stay_together(base):
    center = recorded(100, since_s=0, base=base)
    times = [center, center - 3_000_000, (center + 7_000_000)[5:]]
    lines = [line(f"drive-{k}", time_ns, "drive") for k, time_ns in enumerate(times)]
    divided = BlockSplit(gap_s=0.2).divide(lines)
    assert divided[0].block.tolist() == divided[1].block.tolist() == np.repeat(range(5), 20).tolist()
    assert divided[2].block.tolist() == divided[0].block[5:].tolist()
    assert seconds_apart(times, [division.part for division in divided]) >= 0.2
    without_gap = [division.part for division in BlockSplit(gap_s=0.0).divide(lines)]
    assert without_gap[1].tolist() == without_gap[0].tolist()
    assert without_gap[2].tolist() == without_gap[0].tolist()[5:]
    other = line("other", center + 10**12)
    whole = DriveSplit(test=("drive",)).divide([*lines, other])
    assert [set(division.part) for division in whole] == [{"test"}] * 3 + [{"train"}]
    assert [set(division.block) for division in whole] == [{0}, {0}, {0}, {1}]
    assert set(OnePart(part="val").divide(lines)[2].part) == {"val"}


def test_drives_recorded_at_the_same_time_cannot_be_told_apart():
    lines = [line(name, recorded(20, since_s=0.01 * k)) for k, name in enumerate("abc")]
    with pytest.raises(DataError, match="ran at the same time as others"):
        DriveSplit(val=("b",), test=("c",)).divide(lines)


def near_by_comparing_all(time_ns, clock, asked, anchors, gap_s):
    """The definition, pair by pair."""
    return [
        any(
            anchors[b] and clock[a] == clock[b] and abs(int(time_ns[a]) - int(time_ns[b])) < gap_s * 1e9
            for b in range(len(time_ns))
        )
        for a in np.flatnonzero(asked)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_near_on_a_clock_is_what_comparing_all_pairs_finds(seed):
    rng = np.random.default_rng(seed)
    time_ns = rng.integers(0, 40, 60) * 10**9
    clock = rng.integers(-1, 4, 60)
    asked, anchors = rng.random(60) < 0.5, rng.random(60) < 0.3
    found = near_on_clock(time_ns, clock, asked, anchors, gap_s=2.0)
    assert found.tolist() == near_by_comparing_all(time_ns, clock, asked, anchors, 2.0)
