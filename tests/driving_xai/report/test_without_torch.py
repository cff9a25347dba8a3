"""A report needs no network, and so not the library of networks: most of its memory and time to start was that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_COMMAND = """
import sys

class Refused:
    @staticmethod
    def find_spec(name, *_):
        if name.partition(".")[0] == "torch":
            raise ImportError("a report needs no torch")

sys.meta_path.insert(0, Refused)
from driving_xai.cli import app
app(sys.argv[1:])
"""


def test_the_command_reports_two_models_and_a_replay_where_torch_cannot_be_imported(
    write_results, write_replay, tmp_path: Path
) -> None:
    replayed = write_replay(frames=40)
    folders = [write_results(name, frames=40) for name in ("before", "after")]
    out = [tmp_path / name for name in ("page.html", "table.md", "table.csv")]
    words = ["report", *folders, replayed, "-o", out[0], "--markdown", out[1], "--csv", out[2]]
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, *map(str, words)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_size > 100 for path in out)
