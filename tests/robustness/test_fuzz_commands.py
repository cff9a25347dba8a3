"""A short run of the fuzz of commands, and the long one; `python tests/robustness/fuzz_commands.py` is by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness.fuzz_commands import TARGETS, fuzz, kinds_of, write_originals


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    write_originals(root)
    return root


def test_damaged_files_are_read_or_refused_in_one_line(originals, tmp_path) -> None:
    report = fuzz(originals, tmp_path / "scratch", 1, seed=3)
    assert report.findings == {}
    assert sum(report.outcomes.values()) >= sum(len(kinds_of(target)) for target in TARGETS)


def test_without_damage_every_command_succeeds(originals, tmp_path, monkeypatch) -> None:
    whole = {"whole": lambda data, draw, others: data}
    monkeypatch.setattr("tests.robustness.fuzz_commands.kinds_of", lambda target: whole)
    report = fuzz(originals, tmp_path / "scratch", 1, seed=0)
    assert report.findings == {}
    assert all(outcome.endswith("exits 0") for outcome in report.outcomes), report.outcomes


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_hundred_of_each_damage_leave_no_traceback(originals, tmp_path) -> None:
    assert fuzz(originals, tmp_path / "scratch", 100, seed=0).findings == {}
