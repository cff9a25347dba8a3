"""What is removed from a folder that the user shares with us: our own temporary files, and nothing else."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

from data_prep.shards.atomic import remove_leftovers, replacing

ROOT = Path(__file__).parents[3]
MINE = ("thesis.2026-11-28.tmp", "a.host-1.tmp", "b-c.tmp", "notes.driving-xai.tmp")


def test_only_our_own_temporary_files_are_removed(tmp_path: Path) -> None:
    for name in MINE:
        (tmp_path / name).write_text("mine")
    unfinished = replacing(tmp_path / "results.json")
    left = unfinished.__enter__()
    left.write_text("half")  # As a killed run leaves it: the scope never ends.
    remove_leftovers(tmp_path, whose="ended")
    assert left.exists(), "this process is still at work"
    remove_leftovers(tmp_path, of="other.json")
    assert left.exists()
    remove_leftovers(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(MINE)


def test_what_an_ended_process_left_is_removed_from_a_shared_folder(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from data_prep.shards.atomic import replacing; "
    code += "replacing(Path(sys.argv[1])).__enter__().write_text('half'); print(os.getpid(), flush=True); os._exit(0)"
    line = [sys.executable, "-c", code, str(tmp_path / "features.npy")]
    done = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT)
    (left,) = tmp_path.iterdir()
    assert f".{platform.node()}-{int(done.stdout)}." in left.name
    remove_leftovers(tmp_path, whose="ended")
    assert not list(tmp_path.iterdir())
