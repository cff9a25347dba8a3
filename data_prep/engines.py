"""Where work units run: in this process, in worker processes, or on a Dask cluster.

A unit is small; what all units share (the work) is large and is sent to each worker once. Which
engine runs a unit, and how often, never changes the files it writes.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import wait
from typing import Any, Literal, Protocol, TypeVar

from data_prep.errors import DataError

Unit = TypeVar("Unit")
Result = TypeVar("Result")
EngineName = Literal["serial", "processes", "dask"]

CONNECT_S = 20
"""How long a scheduler, and then its first worker, may take to answer."""

_LOGS = "what `dask scheduler` and `dask worker` wrote to standard error on their machines says why"

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
            with _interrupts_ignored():
                futures = [pool.submit(_run_installed, unit) for unit in units]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise EngineError(
                "a worker process died, perhaps for lack of memory; use fewer --workers and --resume"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Starts processes that ignore Ctrl-C until they are ready: while they import, it would be a traceback each."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_worker(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.default_int_handler)
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

    Every worker must see the source and the output under the same paths; a unit whose files a worker
    does not see is refused, not dropped.
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
        with self._client() as client:
            _check_workers(client)
            # Copied to every worker: it survives the loss of all but one.
            shared = client.scatter(work, broadcast=True, hash=False)
            futures = [client.submit(_call, shared, unit, pure=False) for unit in units]
            finished = distributed.as_completed(futures, loop=client.loop)
            for future in finished:
                yield _result_of(future, self._scheduler)

    @contextmanager
    def _client(self) -> Iterator[Any]:
        """A client of the scheduler at the address, or of a cluster of our own that ends with us."""
        import distributed
        from distributed.comm import CommClosedError

        with ExitStack() as stack:
            try:
                target = self._scheduler or stack.enter_context(self._own_cluster())
                client = stack.enter_context(
                    distributed.Client(target, set_as_default=False, timeout=f"{CONNECT_S}s")
                )
            except (OSError, ValueError, CommClosedError) as error:
                raise EngineError(
                    f"no Dask scheduler answers at {self._scheduler or 'this machine'} ({_first_line(error)}); "
                    "start one with `dask scheduler` and give its tcp:// address"
                ) from None
            yield client

    def _own_cluster(self) -> Any:
        import distributed

        return distributed.LocalCluster(
            n_workers=self._workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
        )


def _check_workers(client: Any) -> None:
    """Every worker must have our versions: with others it would write other bytes.

    Raises:
        EngineError: there is no worker, or one cannot run our code.
    """
    from distributed.comm import CommClosedError

    from data_prep.jobs import versions

    ours = versions()
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
        theirs = client.run(versions)
    except (OSError, ImportError, AttributeError, CommClosedError) as error:
        raise EngineError(
            f"no worker of the Dask cluster can run this ({_first_line(error)}); start `dask worker` in an "
            "environment with driving-xai"
        ) from None
    for address, found in theirs.items():
        other = [
            f"{name} {found.get(name)} in place of {mine}"
            for name, mine in ours.items()
            if found.get(name) != mine
        ]
        if other:
            raise EngineError(
                f"worker {address} has {', '.join(other)} and would write other bytes; install the same versions"
            )


def _result_of(future: Any, scheduler: str | None) -> Any:
    """What a unit gave; its own errors as they are.

    Raises:
        EngineError: the worker or the scheduler was lost; it says who, and where their logs are.
    """
    from distributed.client import FutureCancelledError
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        last = getattr(error.last_worker, "address", "unknown")
        raise EngineError(
            f"workers died one after the other at the same piece of work, the last at {last}, perhaps for lack of "
            f"memory; {_LOGS}; give workers more memory and --resume"
        ) from None
    except (CommClosedError, FutureCancelledError):
        where = "of this machine" if scheduler is None else f"at {scheduler}"
        raise EngineError(
            f"the Dask scheduler {where} or all of its workers are gone; {_LOGS}; start them again and --resume"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


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
