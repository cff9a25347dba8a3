"""Times in tables: units by size, exact digits, and rows in the order of time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers.times import in_time, nanoseconds
from data_prep.readers.udacity_csv import drives
from data_prep.shards.parquet import read_index
from tests.data_prep.recordings import PERIOD_NS, START_NS, interpolated, simulator

PATH = Path("log.csv")


def parsed(*cells, **options):
    return nanoseconds(pd.DataFrame({"t": cells}, dtype=str), "t", PATH, **options).tolist()


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("1479425441182877835", 1479425441182877835),
        ("1479425441.182877835", 1479425441182877835),
        ("1479425441,182877835", 1479425441182877835),
        ("1479425441", 1479425441 * 10**9),
        ("1479425441182", 1479425441182 * 10**6),
        ("1479425441182.5", 14794254411825 * 10**5),
        ("1479425441182877", 1479425441182877 * 10**3),
        ("1479425441182877.835", 1479425441182877835),
    ],
)
def test_the_unit_is_told_from_the_size_and_no_digit_is_lost(cell, expected):
    assert parsed(cell, cell) == [expected, expected]


@given(st.integers(0, 2**62), st.sampled_from([("s", 9), ("ms", 6), ("us", 3), ("ns", 0)]))
def test_times_of_a_named_unit_are_exact(time_ns, unit):
    name, digits = unit
    text = str(time_ns).zfill(digits + 1)
    cell = f"{text[: len(text) - digits]}.{text[len(text) - digits :]}" if digits else text
    assert parsed(cell, unit=name) == [time_ns]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("1479425441", "1479425441182"), "line 1: t is '1479425441182', expected 10 digits of s"),
        (("12.5",), "19 digits of nanoseconds since 1970, or 16 of us, 13 of ms, 10 of s"),
        (("",), "expected 19 digits"),
        (("1.479e18",), "damaged by a float"),
        (("1479425441182877952.0",), "damaged by a float"),
        (("-5",), "expected 19 digits"),
        (("9" * 19,), "beyond 64 bits"),
    ],
)
def test_other_times_are_refused_by_name(cells, message):
    with pytest.raises(DataError, match=message):
        parsed(*cells)
    with pytest.raises(DataError, match="a time in s"):
        parsed("noon", unit="s")


def test_sessions_joined_out_of_order_and_shuffled_rows_are_sorted():
    late, early = np.arange(100, 200), np.arange(0, 50)
    order = in_time(np.r_[late, early])
    assert np.r_[late, early][order.rows].tolist() == [*early, *late]
    assert order.moved == 150
    shuffled = np.random.default_rng(0).permutation(60)
    assert shuffled[in_time(shuffled).rows].tolist() == list(range(60))


def test_a_clock_set_back_and_single_damaged_stamps_are_left_to_the_clocks_repair():
    back = np.r_[np.arange(100), np.arange(60, 160)]
    future = np.r_[np.arange(50), 10_000, np.arange(51, 100)]
    for time_ns in (back, future, np.arange(9)):
        order = in_time(time_ns)
        assert order.moved == 0
        assert order.rows.tolist() == list(range(len(time_ns)))


def test_joined_sessions_keep_every_frame_and_the_report_counts_what_was_moved(tmp_path):
    source = simulator(tmp_path / "sim", np.linspace(-0.5, 0.5, 60))
    log = source / "driving_log.csv"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[40:], *lines[:40]]))
    straight = simulator(tmp_path / "straight" / "sim", np.linspace(-0.5, 0.5, 60))
    outputs = []
    for number, folder in enumerate((source, straight)):
        out = tmp_path / f"out{number}"
        manifest = prepare(PrepConfig(reader="udacity-sim", source=folder, split="train"), out)
        outputs.append((manifest.quality["sim"], read_index(out)))
    (report, joined), (plain, expected) = outputs
    assert report["kept"] == 60
    assert report["sorted_rows"] == 60
    assert "sorted_rows" not in plain
    pd.testing.assert_frame_equal(joined, expected)


def test_seconds_with_nine_decimals_are_the_same_drive(tmp_path):
    (expected,) = drives(interpolated(tmp_path / "ns", 6))
    source = interpolated(tmp_path / "s", 6)
    table = pd.read_csv(source / "interpolated.csv", dtype=str)
    table["timestamp"] = [f"{cell[:-9]}.{cell[-9:]}" for cell in table["timestamp"]]
    table.to_csv(source / "interpolated.csv", index=False)
    (found,) = drives(source)
    assert found.time_ns.tolist() == expected.time_ns.tolist()
    assert expected.time_ns[0] == START_NS + PERIOD_NS // 3
