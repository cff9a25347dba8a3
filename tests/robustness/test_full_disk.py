"""A disk that fills up: one line that names the output, exit 1, and a run that goes on when there is room again."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.test_kill_commands import contents, context, root, work  # noqa: F401


def limited(command: str, root: Path, out: Path, most: int, said: Path) -> None:  # noqa: F811
    """Runs a command that may write no file of more than `most` bytes; standard error goes to a file."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    work(command, root, out, out.with_suffix(".begun"))


def finished(target: Any, *arguments: object) -> int:
    process = context().Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize(
    ("command", "most", "named"),
    [("train", 8_000, "resume/best.ckpt"), ("score", 100_000, "maps.h5"), ("report", 50_000, "page.html")],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on(root, tmp_path, command, most, named) -> None:  # noqa: F811
    out, said = tmp_path / "out", tmp_path / "said"
    assert finished(limited, command, root, out, most, said) == 1
    last = said.read_text().splitlines()[-1]
    assert named in last, said.read_text()[-1500:]
    assert "/tmp/tmp" not in last
    assert "File too large" in last
    assert not list(out.rglob("*.tmp"))
    assert not (out / named).exists()
    assert finished(work, command, root, out, tmp_path / "begun") == 0
    assert finished(work, command, root, tmp_path / "whole", tmp_path / "begun") == 0
    assert contents(out) == contents(tmp_path / "whole")
