"""The training benchmark runs, on a drive of a few seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.prepare import PrepConfig, prepare
from tests.benchmarks import bench_training


def test_the_training_benchmark_measures_both_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"seconds": 4.0, "height": 120, "width": 160}
    prepare(
        PrepConfig(
            reader="synthetic", source=Path("-"), reader_options=options, blocks=3, gap_s=0.1, smoothing=0.99
        ),
        tmp_path / "s",
    )
    speeds = bench_training.run(tmp_path / "s", 8, 1, 1, "cpu")
    assert set(speeds) == set(bench_training.CASES)
    for speed in speeds.values():
        assert speed.frames_per_s > 0
        assert 0 <= speed.data_wait_share <= 1
    assert capsys.readouterr().out.count("frames/s") == 2
