"""A short run of the fuzzer in every test run; `python tests/robustness/fuzz_readers.py` is the long one."""

from __future__ import annotations

import pytest

from tests.robustness.fuzz_readers import SEEDS, fuzz, run

CASES = {"udacity-bag": 60, "comma2k19": 60, "bdd-oia": 60, "image-folder": 60}
CASES |= {"csv": 10, "donkeycar": 30, "lerobot": 30, "ros2-bag": 15}


@pytest.mark.parametrize("reader", CASES)
def test_damaged_recordings_are_read_or_refused_with_one_line(reader):
    report = fuzz(range(CASES[reader]), base=7, readers=[reader])
    assert report.findings == {}
    assert sum(report.outcomes.values()) == CASES[reader]


@pytest.mark.slow
def test_a_hundred_damages_of_each_file_leave_no_traceback():
    assert fuzz(range(100 * len(SEEDS)), base=0).findings == {}


@pytest.mark.parametrize("position", range(len(SEEDS)))
def test_without_damage_every_recording_is_prepared(position, tmp_path):
    seed = SEEDS[position]
    source = tmp_path / "source"
    source.mkdir()
    seed.write(source)
    assert run(seed, source, tmp_path / "out", whole=True) == "prepared"
    assert run(seed, source, tmp_path / "out", whole=False) == "read"
