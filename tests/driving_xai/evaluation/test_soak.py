"""A thousand frames scored: memory and open files stay where they were after the first hundred."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.run import score

MOST_GROWTH_MIB = 24


@pytest.mark.slow
def test_memory_is_flat_and_no_file_stays_open(steering, write_route, tmp_path):
    shards = write_route(stretches=[("a", 0, "test", 501), ("b", 0, "test", 501)])
    checkpoint = steering(shards_sha256="0" * 64)
    seen: list[tuple[int, float, int]] = []

    def look(done: int, total: int) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        seen.append((done, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, _open_files()))

    config = ScoreConfig(
        methods=("soft-attention", "grad-cam", "integrated-gradients"),
        measures=("deletion", "insertion"),
        split="test",
    )
    before = _open_files()
    score(checkpoint, shards, tmp_path / "out", config, on_progress=look)
    assert seen[-1][0] == 1000
    settled = [memory for done, memory, _ in seen if done >= 100]
    assert max(settled) - settled[0] < MOST_GROWTH_MIB
    assert max(files for _, _, files in seen) <= before + 2
    assert _open_files() <= before


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
