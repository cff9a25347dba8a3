"""What is held out, and how rows become runs and windows."""

import numpy as np
import pandas as pd
import pytest

from data_prep.schema import VEHICLES
from data_prep.signals import inverse_turning_radius
from data_prep.split import UNIX_FROM_NS
from driving_xai.data.drives import Run, Windows, degrees_per_unit, runs
from driving_xai.data.splits import HoldOut
from driving_xai.errors import DataError


def index_of(drives: int = 1, frames: int = 1000, blocks: int = 5) -> pd.DataFrame:
    """20 Hz drives cut into equal time blocks."""
    tables = []
    for d in range(drives):
        tables.append(
            pd.DataFrame(
                {
                    "drive": f"drive-{d}",
                    "camera": "center",
                    "segment": 0,
                    "time_ns": np.arange(frames, dtype=np.int64) * 50_000_000,
                    "block": np.arange(frames) * blocks // frames,
                    "split": "train",
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def test_a_held_out_block_is_tested_and_nothing_near_it_is_trained_on() -> None:
    index = index_of()
    splits = HoldOut(block=2, gap_s=2.0, val_fraction=0.1).splits(index)
    time_s = index["time_ns"].to_numpy() / 1e9
    assert ((splits == "test") == (index["block"] == 2)).all()
    for held, others in (("test", ("train", "val")), ("val", ("train",))):
        for other in others:
            apart = np.abs(time_s[splits == held][:, None] - time_s[splits == other][None])
            assert apart.min() >= 2.0
    # 4 blocks of 200 frames: 20 rows each to validate, less what the gap beside the test block takes.
    assert (splits == "val").sum() == 60
    assert set(splits) == {"train", "val", "test", "gap"}


def test_without_validation_only_the_gap_around_the_test_block_is_lost() -> None:
    splits = HoldOut(block=0, gap_s=2.0, val_fraction=0).splits(index_of())
    assert (splits == "gap").sum() == 39  # 1.95 s of frames after the block
    assert (splits == "train").sum() == 1000 - 200 - 39


def test_drives_with_clocks_of_their_own_are_far_away() -> None:
    index = index_of(drives=2)
    index["block"] = (index["drive"] == "drive-1").astype(int)
    splits = HoldOut(block=1, val_fraction=0).splits(index)
    assert (splits == "gap").sum() == 0
    assert (splits == "train").sum() == 1000


def test_a_drive_that_follows_another_in_real_time_is_not_trained_on_at_the_seam() -> None:
    index = index_of(drives=2)
    second = index["drive"] == "drive-1"
    index["block"] = second.astype(int)
    index["time_ns"] += UNIX_FROM_NS + np.where(second, 1000 * 50_000_000, 0)
    splits = HoldOut(block=1, gap_s=2.0, val_fraction=0).splits(index)
    assert (splits[second] == "test").all()
    assert np.flatnonzero(splits == "gap").tolist() == list(range(961, 1000))  # under 2 s, 50 ms a frame


def test_the_cameras_of_an_instant_validate_together() -> None:
    """The last part of a block is so by time, not by the order in which cameras are listed."""
    index = index_of(drives=2, frames=500)
    index["time_ns"] += UNIX_FROM_NS
    splits = HoldOut(block=0, gap_s=0.0, val_fraction=0.1).splits(index)
    assert splits[:500].tolist() == splits[500:].tolist()
    assert (splits == "val").sum() == 80


def test_a_block_that_is_not_there_or_leaves_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="block 7 is not in these shards"):
        HoldOut(block=7).splits(index_of())
    with pytest.raises(DataError, match="nothing to train on"):
        HoldOut(block=0).splits(index_of(blocks=1))


def test_runs_break_at_segments_drives_and_unchosen_rows() -> None:
    index = index_of(drives=2, frames=10, blocks=1)
    index.loc[index.index[4:10], "segment"] = 1
    chosen = np.ones(20, dtype=bool)
    chosen[12] = False
    found = [run.rows.tolist() for run in runs(index, chosen)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9], [10, 11], [13, 14, 15, 16, 17, 18, 19]]


def test_windows_cover_each_run_once_and_never_cross_it() -> None:
    cut = Windows(
        None, [Run(rows=np.arange(10, 21)), Run(rows=np.arange(50, 53))], length=4, stride=4, offset=1
    )
    assert [w.tolist() for w in cut.windows] == [[11, 12, 13, 14], [15, 16, 17, 18]]


def test_degrees_per_unit_inverts_the_inverse_turning_radius() -> None:
    vehicle, speed = VEHICLES["lincoln-mkz"], np.array([0.0, 12.0, np.nan])
    angle = np.radians([10.0, -35.0, 90.0])
    radius = inverse_turning_radius(angle, speed, vehicle)
    np.testing.assert_allclose(radius * degrees_per_unit(speed, vehicle), [10, -35, 90], rtol=1e-12)
