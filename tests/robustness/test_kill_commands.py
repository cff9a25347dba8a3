"""SIGKILL at seeded moments of commands: what is resumed equals an unbroken run, and nothing is left behind.

OUT lies on another file system than the temporary folder, where the machine has two.
"""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driving_xai.cli import app
from driving_xai.experiments.baumhauer_mnist import Mnist
from driving_xai.experiments.baumhauer_mnist import run as run_mnist
from tests.driving_xai.training.test_loop import trained
from tests.robustness.fuzz_commands import SCORE, write_originals

COMMANDS = ("train", "score", "experiment", "report")
_NOT_COMPARED = ("logs/", "resume/", "table.md.")
"""Events have times in them; states are compared by what they become."""


def work(command: str, root: Path, out: Path, begun: Path) -> None:
    """One run of a command, resumed where the folder holds one, after a sign that it begins."""
    begun.touch()
    if command == "train":
        trained(out, resume=(out / "resume" / "config.json").exists())
    elif command == "experiment":
        from driving_xai.cli.experiment import _alone

        with _alone(out):
            run_mnist(None, out, Mnist(steps=3, seeds=2, networks=("baseline", "bla")))
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
    return folder


def contents(out: Path) -> dict[str, bytes]:
    files = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    return {name: data for name, data in files.items() if not name.startswith(_NOT_COMPARED)}


def assert_survives(command: str, root: Path, elsewhere: Path, kills: int, seed: int) -> int:
    """Kills a command so often, each time in a new folder, and completes it; returns how many kills met work."""
    whole = elsewhere / f"{command}-whole"
    process = start(command, root, whole)
    began = time.perf_counter()
    process.join()
    lasts_s = time.perf_counter() - began
    assert process.exitcode == 0
    expected, met = contents(whole), 0
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
        left = [
            file.name
            for file in out.rglob("*")
            if file.name.endswith((".tmp", ".lock")) or file.name == "parts"
        ]
        assert left == [], (command, number)
        shutil.rmtree(out)
    shutil.rmtree(whole)
    return met


@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_ends_as_an_unbroken_one(command, root, elsewhere) -> None:
    assert_survives(command, root, elsewhere, 1, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", COMMANDS)
def test_twenty_kills_change_no_byte(command, root, elsewhere) -> None:
    assert assert_survives(command, root, elsewhere, 20, seed=2) > 5


@pytest.mark.parametrize("command", COMMANDS)
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
