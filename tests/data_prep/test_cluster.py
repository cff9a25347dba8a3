"""A real cluster, started from Dask's own command lines: the bytes stay those of the serial engine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.engines import EngineError
from data_prep.errors import DataError
from data_prep.prepare import Progress, prepare
from data_prep.shards.verify import verify
from tests.data_prep.recordings import challenge
from tests.data_prep.test_engines import ROOT, wait_until
from tests.data_prep.test_prepare import config, contents

distributed = pytest.importorskip("distributed")

WORKER = ("worker", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "60")


class Cluster:
    """A scheduler and two workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "scheduler.json"
        self._running: list[subprocess.Popen] = []
        self._start("scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(self._file))
        wait_until(lambda: self._file.exists() and self._file.read_text().endswith("}"))
        self.address: str = json.loads(self._file.read_text())["address"]
        self.workers = [self._start(*WORKER, "--scheduler-file", str(self._file)) for _ in range(2)]
        with distributed.Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)

    def _start(self, *command: str) -> subprocess.Popen:
        log = (self._folder / f"{len(self._running)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )
        self._running.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self._running):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "cluster").mkdir()
    started = Cluster(tmp_path / "cluster")
    yield started
    started.stop()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return challenge(tmp_path / "drive", 240)


def test_a_worker_killed_in_the_middle_changes_no_byte(cluster, source, tmp_path):
    """240 frames in 24 units; of the two workers one is gone after the third."""
    prepare(config(source), tmp_path / "serial")
    lost = []

    def kill_one(progress: Progress) -> None:
        if progress.units_done >= 3 and not lost:
            cluster.workers[0].send_signal(signal.SIGKILL)
            lost.append(progress.units_done)

    seen: list[int] = []

    def watch(progress: Progress) -> None:
        seen.append(progress.units_done)
        kill_one(progress)

    prepare(config(source), tmp_path / "out", engine="dask", scheduler=cluster.address, on_progress=watch)
    assert lost
    assert lost[0] < 24
    assert cluster.workers[0].wait(timeout=30) == -signal.SIGKILL
    assert seen[-1] == 24
    assert contents(tmp_path / "out") == contents(tmp_path / "serial")
    assert verify(tmp_path / "out").ok


@pytest.mark.slow
def test_what_the_work_refuses_and_a_lost_cluster_are_told_apart(cluster, source, tmp_path):
    images = sorted((source / "center").iterdir())
    whole = images[5].read_bytes()
    images[5].write_bytes(b"text")
    with pytest.raises(DataError, match="neither JPEG nor PNG"):
        prepare(config(source, on_bad="refuse"), tmp_path / "a", engine="dask", scheduler=cluster.address)
    images[5].write_bytes(whole)

    def lose_everything(progress: Progress) -> None:
        if progress.units_done == 2:
            cluster.stop()

    with pytest.raises(EngineError, match=r"scheduler at tcp://.* are gone; what `dask sch.*--resume$"):
        prepare(
            config(source),
            tmp_path / "b",
            engine="dask",
            scheduler=cluster.address,
            on_progress=lose_everything,
        )
    prepare(config(source), tmp_path / "b", resume=True)
    prepare(config(source), tmp_path / "serial")
    assert contents(tmp_path / "b") == contents(tmp_path / "serial")


@pytest.mark.slow
def test_an_address_where_nothing_answers_is_one_clear_line(source, tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.engines.CONNECT_S", 2)
    for name, address in (("a", "tcp://127.0.0.1:1"), ("b", "nonsense")):
        with pytest.raises(EngineError, match="no Dask scheduler answers") as error:
            prepare(config(source), tmp_path / name, engine="dask", scheduler=address)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_workers_with_other_libraries_are_refused(cluster, source, tmp_path, monkeypatch):
    """They would write other bytes, perhaps."""
    monkeypatch.setattr("data_prep.jobs.cv2.__version__", "4.0")
    with pytest.raises(EngineError, match=r"worker tcp://.* has opencv .* in place of 4\.0"):
        prepare(config(source), tmp_path / "out", engine="dask", scheduler=cluster.address)
