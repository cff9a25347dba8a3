"""The benchmark of passes runs."""

from __future__ import annotations

import pytest

from tests.benchmarks import bench_passes


def test_the_benchmark_of_passes_prints_a_row_a_case(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench_passes.run(steps=4, batch_size=8)
    assert len(capsys.readouterr().out.splitlines()) == len(found)
    assert found["Deletion"] == found["Insertion"] == [1, 4]
