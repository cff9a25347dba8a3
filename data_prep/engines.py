"""Where work units run: in this process, in worker processes, or on a Dask cluster.

A unit is small; what all units share (the work) is large and is sent to each worker once. Which
engine runs a unit, and how often, never changes the files it writes.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, Literal, Protocol, TypeVar

from data_prep.errors import DataError

Unit = TypeVar("Unit")
Result = TypeVar("Result")
EngineName = Literal["serial", "processes", "dask"]

_work: Callable[[Any], Any] | None = None


class EngineError(RuntimeError):
    """Workers died or a cluster was lost. What is finished stays; `--resume` continues."""


class Engine(Protocol):
    """Runs one function on many units."""

    threads: int
    """How many threads a unit may use inside itself."""

    def map(self, work: Callable[[Unit], Result], units: Sequence[Unit]) -> Iterator[Result]:
        """Yields the results as they finish, in any order.

        Raises:
            EngineError: the workers were lost.
        """
        ...


class SerialEngine:
    """One unit at a time in this process; `workers` threads decode inside it."""

    def __init__(self, *, workers: int) -> None:
        self.threads = workers

    def map(self, work: Callable[[Unit], Result], units: Sequence[Unit]) -> Iterator[Result]:
        return map(work, units)


class ProcessEngine:
    """`workers` processes, each with one unit at a time and one thread."""

    threads = 1

    def __init__(self, *, workers: int) -> None:
        self._workers = workers

    def map(self, work: Callable[[Unit], Result], units: Sequence[Unit]) -> Iterator[Result]:
        # Not fork: the caller may hold threads and open HDF5 files, which do not survive it.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(
            max_workers=min(self._workers, max(len(units), 1)),
            mp_context=context,
            initializer=_start_worker,
            initargs=(work,),
        )
        try:
            for future in as_completed([pool.submit(_run_installed, unit) for unit in units]):
                yield future.result()
        except BrokenProcessPool:
            raise EngineError(
                "a worker process died, perhaps for lack of memory; use fewer --workers and --resume"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Without this, workers outlive a parent that was killed and wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run_installed(unit: Any) -> Any:
    assert _work is not None
    return _work(unit)


class DaskEngine:
    """A Dask cluster: the scheduler at an address, or a local one with `workers` processes.

    Every worker must see the source and the output under the same paths.
    """

    threads = 1

    def __init__(self, *, workers: int, scheduler: str | None = None) -> None:
        self._workers = workers
        self._scheduler = scheduler

    def map(self, work: Callable[[Unit], Result], units: Sequence[Unit]) -> Iterator[Result]:
        try:
            import distributed
        except ImportError:
            raise DataError("engine dask needs dask[distributed]; install driving-xai[cluster]") from None
        try:
            with (
                self._target() as target,
                distributed.Client(target, set_as_default=False, timeout="20s") as client,
            ):
                shared = client.scatter(work, broadcast=True, hash=False)
                futures = [client.submit(_call, shared, unit, pure=False) for unit in units]
                for future in distributed.as_completed(futures, loop=client.loop):
                    yield future.result()
        except (distributed.scheduler.KilledWorker, OSError) as error:
            reason = str(error).split("\n")[0]
            raise EngineError(
                f"the Dask cluster failed ({reason}); check the scheduler and --resume"
            ) from None

    @contextmanager
    def _target(self) -> Iterator[Any]:
        """What a client connects to: an address, or a cluster of our own that ends with us."""
        import distributed

        if self._scheduler is not None:
            yield self._scheduler
            return
        with distributed.LocalCluster(
            n_workers=self._workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
        ) as cluster:
            yield cluster


def _call(work: Callable[[Unit], Result], unit: Unit) -> Result:
    return work(unit)


def build(name: EngineName, *, workers: int, scheduler: str | None = None) -> Engine:
    """The engine a user names.

    Raises:
        DataError: the name is unknown, `workers` is not positive, or an address is given to another engine.
    """
    if workers < 1:
        raise DataError(f"workers is {workers}; expected 1 or more")
    if scheduler is not None and name != "dask":
        raise DataError(f"scheduler {scheduler!r} is for the dask engine, not for {name}; add --engine dask")
    if name == "serial":
        return SerialEngine(workers=workers)
    if name == "processes":
        return ProcessEngine(workers=workers)
    if name == "dask":
        return DaskEngine(workers=workers, scheduler=scheduler)
    raise DataError(f"engine {name!r} is unknown; choose serial, processes or dask")
