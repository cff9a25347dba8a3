"""Engines give every result once, and say clearly when workers die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.engines import EngineError, ProcessEngine, build
from data_prep.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def square(number: int) -> int:
    return number * number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse_three(number: int) -> int:
    if number == 3:
        raise DataError("three is refused")
    return number


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_every_result_comes_once(name):
    engine = build(name, workers=2)
    assert sorted(engine.map(square, range(20))) == [n * n for n in range(20)]
    assert list(engine.map(square, [])) == []


@pytest.mark.slow
def test_dask_every_result_comes_once():
    pytest.importorskip("distributed")
    assert sorted(build("dask", workers=2).map(square, range(20))) == [n * n for n in range(20)]


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_an_error_of_the_work_arrives_as_it_is(name):
    with pytest.raises(DataError, match=r"^three is refused$"):
        list(build(name, workers=2).map(refuse_three, range(6)))


def test_a_killed_worker_is_one_clear_line():
    with pytest.raises(EngineError, match=r"a worker process died.*--resume"):
        list(ProcessEngine(workers=2).map(die_at_three, range(6)))


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    """Otherwise they wait for work for ever, and write beside a resumed run."""
    script = """
import os, signal, sys, time
from pathlib import Path
from data_prep.engines import ProcessEngine
from tests.data_prep.test_engines import note_and_sleep
if __name__ == "__main__":
    list(ProcessEngine(workers=2).map(note_and_sleep, [sys.argv[1]] * 2))
"""
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    parent.kill()
    parent.wait()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    wait_until(lambda: not any(is_running(worker) for worker in workers))


def note_and_sleep(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(60)


def is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_wrong_settings_are_refused():
    with pytest.raises(DataError, match="workers is 0"):
        build("serial", workers=0)
    with pytest.raises(DataError, match="choose serial, processes or dask"):
        build("spark", workers=1)
    with pytest.raises(DataError, match="add --engine dask"):
        build("processes", workers=1, scheduler="tcp://10.0.0.1:8786")
