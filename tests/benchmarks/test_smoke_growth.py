"""The growth benchmark runs, on a few images."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from driving_xai.evaluation.results import PER_FRAME, read_table
from tests.benchmarks import bench_growth


def test_the_growth_benchmark_measures_every_step(tmp_path: Path) -> None:
    bench_growth.write_parts(tmp_path / "parts", 70, batch=32, group=7)
    found = dict(bench_growth.join(tmp_path / "parts", tmp_path / "out"))
    assert found["join"] == 70
    assert {each["frames"] for each in found["summary"]["scores"]} == {70}
    joined = read_table(tmp_path / "out" / PER_FRAME)
    parts = pd.concat(map(read_table, sorted((tmp_path / "parts").glob("*.parquet"))))
    assert sorted(joined["value"]) == sorted(parts["value"])
    bench_growth.write_drive(tmp_path / "scores", 200)
    assert bench_growth.measured_report(tmp_path / "scores")["html_mb"] < 1
    assert bench_growth.exponent([10, 40], [1.0, 16.0]) == 2
