"""The replay benchmark runs, on a recording of a few frames."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import bench_replay
from tests.driving_xai.replay.conftest import write_recording


def test_the_replay_benchmark_measures_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = bench_replay.SteeringConfig(hidden_size=8)
    monkeypatch.setattr(bench_replay, "SteeringConfig", lambda **_changes: small)
    drive = write_recording(tmp_path / "drive")
    measured = bench_replay.run(0.3, None, "cpu", drive, warm_up=2)
    assert set(measured["scoring, no control"]) == {"model", "explain", "score", "whole"}
    for spent in measured.values():
        assert spent["whole"] > 0
    assert measured["replay, not scored"]["score"] == 0
    assert measured["replay, veryfast"]["score"] > 0
    assert "frames/s" in capsys.readouterr().out
