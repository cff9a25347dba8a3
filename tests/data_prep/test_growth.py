"""Planning, indexing and checking grow in proportion to the data: operations are counted, not timed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from data_prep.alignment import Alignment
from data_prep.drive_job import DriveJob
from data_prep.geometry import Geometry
from data_prep.policy import Policy
from data_prep.schema import VEHICLES, Drive, Signal
from data_prep.shards.manifest import ShardEntry
from data_prep.shards.verify import _Rows
from data_prep.split import BlockSplit, DriveSplit, OnePart, Timeline, near_on_clock
from tests.growth import MOST_EXPONENT, Counted, exponent

SIZES = (20, 80, 320)


class CountedList(list):
    """A list that counts the items that are taken in loops over it."""

    seen = 0

    def __iter__(self):
        for item in super().__iter__():
            CountedList.seen += 1
            yield item


@pytest.fixture
def compared(monkeypatch):
    """How many cells of tables were compared with `==`."""
    found = {"cells": 0}
    equal = pd.Series.__eq__

    def counted(self, other):
        found["cells"] += len(self)
        return equal(self, other)

    monkeypatch.setattr(pd.Series, "__eq__", counted)
    return found


def test_gaps_between_many_drives_with_clocks_of_their_own():
    counts = []
    for drives in SIZES:
        clock = np.repeat(np.arange(drives), 20)
        time_ns = np.tile(np.arange(20) * 10**8, drives)
        part = np.tile(np.arange(20) < 10, drives)
        Counted.seen = 0
        near_on_clock(time_ns.view(Counted), clock.view(Counted), part, ~part, gap_s=0.25)
        counts.append(Counted.seen)
    assert exponent(SIZES, counts) <= MOST_EXPONENT


@pytest.mark.parametrize("split", [BlockSplit(gap_s=0.1), DriveSplit(gap_s=0.1)])
def test_splits_of_many_drives(split):
    counts = []
    for drives in SIZES:
        time_ns = np.arange(50) * 10**8
        lines = CountedList(
            Timeline(drive=str(n), recording=f"of {n // 2}", time_ns=time_ns) for n in range(drives)
        )
        CountedList.seen = 0
        split.divide(lines)
        counts.append(CountedList.seen)
    assert exponent(SIZES, counts) <= MOST_EXPONENT


class NoImages:
    def read(self, start, stop):
        return iter(())

    def files(self, start, stop):
        return iter(())


def fabricated(drives: int) -> DriveJob:
    time_ns = np.arange(40, dtype=np.int64) * 50_000_000
    records = [
        Drive(
            name=f"d{n}",
            source="video",
            camera="video",
            vehicle=VEHICLES["lincoln-mkz"],
            time_ns=time_ns,
            images=NoImages(),
            steering_wheel=Signal(time_ns=time_ns, value=np.zeros(40)),
        )
        for n in range(drives)
    ]
    return DriveJob.plan(
        records,
        config={"reader": "video", "source": "x"},
        geometry=Geometry(),
        alignment=Alignment(smoothing=1.0),
        policy=Policy(),
        split=OnePart(part="train"),
        frames_per_shard=20,
    )


def test_index_and_manifest_of_many_drives(compared):
    looped, cells = [], []
    for drives in SIZES:
        job = fabricated(drives)
        object.__setattr__(job, "units", CountedList(job.units))
        entries = {
            unit.path: ShardEntry(path=unit.path, sha256="", bytes=0, rows=20, drive=f"d{unit.drive}")
            for unit in job.units
        }
        CountedList.seen = compared["cells"] = 0
        index, _ = job.index(entries)
        shards = CountedList(entries.values())
        manifest = job.manifest(shards, [shards[0]], index, fingerprint="x")
        assert [report["kept"] for report in manifest.quality.values()] == [40] * drives
        looped.append(CountedList.seen)
        cells.append(1 + compared["cells"])
    assert exponent(SIZES, looped) <= MOST_EXPONENT
    assert exponent(SIZES, cells) <= MOST_EXPONENT


def test_the_rows_of_many_shards_for_their_check(compared):
    cells = []
    for shards in SIZES:
        index = pd.DataFrame(
            {
                "shard": np.repeat([f"s{n}" for n in range(shards)], 20),
                "row": np.tile(np.arange(20), shards),
            }
        )
        compared["cells"] = 0
        rows = _Rows(index)
        assert all(rows.of(f"s{n}")["row"].tolist() == list(range(20)) for n in range(shards))
        cells.append(1 + compared["cells"])
    assert not len(rows.of("none"))
    assert exponent(SIZES, cells) <= MOST_EXPONENT
