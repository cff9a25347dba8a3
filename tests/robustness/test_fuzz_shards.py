"""A short run of the fuzz of shards; `python tests/robustness/fuzz_shards.py` is the long one."""

from __future__ import annotations

import sys

from tests.robustness import fuzz_shards
from tests.robustness.fuzz_shards import TARGETS, Worker, check, fuzz, write_outputs


def test_damaged_outputs_are_read_or_refused_with_one_line():
    report = fuzz(range(80), base=7)
    assert report.findings == {}
    assert sum(report.outcomes.values()) == 80


def test_without_damage_every_output_is_read(tmp_path, monkeypatch):
    write_outputs(tmp_path / "originals")
    monkeypatch.setattr(fuzz_shards, "damage", lambda *_, **__: False)
    for number in range(len(TARGETS)):
        assert check(number, 0, tmp_path / "originals", tmp_path / "scratch").endswith(": read")


def test_a_case_that_ends_or_stops_its_process_is_a_finding_and_the_next_one_runs(tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys, time\n"
        "for line in sys.stdin:\n"
        "    if line == '0\\n': os.abort()\n"
        "    if line == '1\\n': time.sleep(600)\n"
        '    print(\'{"outcome": "fine"}\', flush=True)\n'
    )
    monkeypatch.setattr(fuzz_shards, "MOST_SECONDS", 1.0)
    monkeypatch.setattr(fuzz_shards, "STARTING_S", 2.0)
    worker = Worker([sys.executable, str(script)])
    assert "ended the process with status -6" in worker.run(0)["finding"]
    assert "still running after 3 s" in worker.run(1)["finding"]
    assert worker.run(2) == {"outcome": "fine"}
    worker.close()
