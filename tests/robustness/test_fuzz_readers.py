"""A short run of the fuzzer in every test run; `python tests/robustness/fuzz_readers.py` is the long one."""

from __future__ import annotations

import pytest

from tests.robustness.fuzz_readers import SEEDS, fuzz, run

READERS = ("udacity-bag", "comma2k19", "bdd-oia", "image-folder")


@pytest.mark.parametrize("reader", READERS)
def test_damaged_recordings_are_read_or_refused_with_one_line(reader):
    report = fuzz(range(60), base=7, readers=[reader])
    assert report.findings == {}
    assert sum(report.outcomes.values()) == 60


@pytest.mark.parametrize("position", range(len(SEEDS)))
def test_without_damage_every_recording_is_prepared(position, tmp_path):
    seed = SEEDS[position]
    source = tmp_path / "source"
    source.mkdir()
    seed.write(source)
    assert run(seed, source, tmp_path / "out", whole=True) == "prepared"
    assert run(seed, source, tmp_path / "out", whole=False) == "read"
