"""SIGKILL at seeded moments of commands: what is resumed equals an unbroken run, and nothing is left behind.

OUT lies on another file system than the temporary folder, where the machine has two.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from data_prep.prepare import prepare
from driving_xai import demo
from driving_xai.cli import app
from driving_xai.experiments.baumhauer_mnist import Mnist
from driving_xai.experiments.baumhauer_mnist import run as run_mnist
from tests.data_prep.recordings import challenge
from tests.data_prep.test_prepare import config
from tests.driving_xai.training.test_loop import trained
from tests.robustness.fuzz_commands import SCORE, write_originals

FAST = ("train", "score", "experiment", "report")
COMMANDS = (*FAST, "replay", "demo", "dask")
"""`dask` is a preparation on a cluster of its own."""
REPLAY = ("--method", "sign-attention", "--set", "control_every=4")
TINY = demo.Scale(drives=3, seconds=1.2, hidden_size=4, frame_epochs=1, epochs=1, score_every=8)
_NOT_COMPARED = ("logs/", "resume/", "model/logs/", "model/resume/", "table.md.")
"""Events have times in them; states are compared by what they become."""
_OF = "DRIVING_XAI_TEST_OUT"
"""In the environment of what a run starts: the output that it works for."""
_MOST_ORPHANED_S = 30.0


def work(command: str, root: Path, out: Path, begun: Path) -> None:
    """One run of a command, resumed where the folder holds one, after a sign that it begins."""
    os.environ[_OF] = str(out)
    begun.touch()
    if command == "train":
        trained(out, resume=(out / "resume" / "config.json").exists())
    elif command == "experiment":
        from driving_xai.cli.experiment import _alone

        with _alone(out):
            run_mnist(None, out, Mnist(steps=3, seeds=2, networks=("baseline", "bla")))
    elif command == "dask":
        prepare(config(root / "recording"), out, engine="dask", workers=2, resume=out.exists())
    elif command == "demo":
        with patch.object(demo, "Scale", lambda: TINY):
            app(["demo", "--out", str(out)])
    elif command == "replay":
        app(["replay", str(root / "model"), str(root / "shards"), *REPLAY, "-o", str(out / "film.mp4")])
    elif command == "score":
        words = [str(root / "model"), str(root / "shards"), *SCORE, "--batch-size", "1", "--every", "2"]
        app(["score", *words, "--save-maps", "--resume", "-o", str(out)])
    else:
        app(["report", str(root / "scores"), "-o", str(out / "page.html"), "--csv", str(out / "page.csv")])


def context() -> Any:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.robustness.test_kill_commands"])
    return found


def start(command: str, root: Path, out: Path) -> Any:
    begun = out.with_suffix(".begun")
    begun.unlink(missing_ok=True)
    process = context().Process(target=work, args=(command, root, out, begun))
    process.start()
    while not begun.exists():
        assert process.is_alive() or begun.exists(), process.exitcode
        time.sleep(0.002)
    return process


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Path]:
    """A folder on another file system than the temporary one, where there is one."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write_originals(folder)
    challenge(folder / "recording")
    return folder


def contents(out: Path) -> dict[str, bytes]:
    files = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    return {name: data for name, data in files.items() if not name.startswith(_NOT_COMPARED)}


def left_behind(out: Path) -> list[str]:
    """Temporary files, and processes that are still there some time after."""
    ends = (".tmp", ".lock")
    files = [file.name for file in out.rglob("*") if file.name.endswith(ends) or file.name == "parts"]
    until = time.monotonic() + _MOST_ORPHANED_S
    while (orphans := running_for(out)) and time.monotonic() < until:
        time.sleep(0.2)
    return files + orphans


def running_for(out: Path) -> list[str]:
    """Process ids of what a run of this output started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # It ends meanwhile, or is not ours.
            if f"{_OF}={out}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(folder.name)
    return found


def whole_run(command: str, root: Path, elsewhere: Path) -> tuple[dict[str, bytes], float]:
    """What an unbroken run writes, and how many seconds it takes."""
    out = elsewhere / f"{command}-whole"
    process = start(command, root, out)
    began = time.perf_counter()
    process.join()
    lasts_s = time.perf_counter() - began
    assert process.exitcode == 0
    expected = contents(out)
    shutil.rmtree(out)
    return expected, lasts_s


def assert_survives(command: str, root: Path, elsewhere: Path, kills: int, seed: int) -> int:
    """Kills a command so often, each time in a new folder, and completes it; returns how many kills met work."""
    (expected, lasts_s), met = whole_run(command, root, elsewhere), 0
    for number in range(kills):
        out = elsewhere / f"{command}-{seed}-{number}"
        process = start(command, root, out)
        time.sleep(float(np.random.default_rng([seed, number]).uniform(0.0, lasts_s)))
        process.kill()
        process.join()
        met += process.exitcode == -signal.SIGKILL
        process = start(command, root, out)
        process.join()
        assert process.exitcode == 0, (command, number)
        assert contents(out) == expected, (command, number)
        assert left_behind(out) == [], (command, number)
        shutil.rmtree(out)
    return met


@pytest.mark.parametrize("command", FAST)
def test_a_killed_command_ends_as_an_unbroken_one(command, root, elsewhere) -> None:
    assert_survives(command, root, elsewhere, 1, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", COMMANDS)
def test_twenty_kills_change_no_byte(command, root, elsewhere) -> None:
    assert assert_survives(command, root, elsewhere, 20, seed=2) > 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", COMMANDS)
def test_two_at_once_leave_what_one_does(command, root, elsewhere) -> None:
    expected, _ = whole_run(command, root, elsewhere)
    for number in range(3):
        out = elsewhere / f"{command}-at-once-{number}"
        both = [start(command, root, out) for _ in range(2)]
        for process in both:
            process.join()
        # Of a run that found the other's finished, 0 or 3; of one that was refused meanwhile, 1 (an error) or 3.
        assert {process.exitcode for process in both} in ({0}, {0, 1}, {0, 3}), (command, number)
        assert contents(out) == expected, (command, number)
        assert left_behind(out) == [], (command, number)
        shutil.rmtree(out)


@pytest.mark.parametrize("command", FAST)
def test_of_two_at_once_one_is_refused_or_finds_it_done(
    command, root, elsewhere, attempt: Callable[..., int]
) -> None:
    out = elsewhere / f"{command}-two"
    assert attempt(command, root, out) in (1, 3)
    shutil.rmtree(out)


@pytest.fixture
def attempt() -> Callable[..., int]:
    """The exit code of a second run while another holds the lock of its output."""

    def second(command: str, root: Path, out: Path) -> int:
        from data_prep.lock import exclusive, exclusive_file

        out.mkdir()
        with exclusive_file(out / "page.html") if command == "report" else exclusive(out):
            process = start(command, root, out)
            process.join()
        assert not [file for file in out.rglob("*") if file.is_file()]
        return int(process.exitcode)

    return second
