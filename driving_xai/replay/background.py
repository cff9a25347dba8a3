"""Work in threads beside the model: items fetched ahead, results handled behind, time per stage.

OpenCV, PyAV and HDF5 release the interpreter's lock, so decoding and encoding run while the model
computes. Queues are bounded; an error in a thread is raised in the thread that waits for it; leaving
a block ends its thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

_END = object()
_POLL_S = 0.05


@dataclass
class StageTimes:
    """Seconds spent in each stage of a pipeline.

    Stages of different threads overlap: their sum exceeds the time on the clock.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the time inside the block to a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begun
            with self._lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time that each takes to come added to a stage."""
        iterator = iter(items)
        while True:
            with self.measure(stage):
                item = next(iterator, _END)
            if item is _END:
                return
            yield item  # type: ignore[misc]


@dataclass
class _Failure:
    error: BaseException


@contextmanager
def ahead(items: Iterable[T], depth: int) -> Iterator[Iterator[T]]:
    """Yields the items, fetched by a thread that stays at most `depth` of them ahead.

    What the thread raises is raised where the items are taken.

    Example:
        >>> with ahead(range(3), depth=2) as numbers:
        ...     list(numbers)
        [0, 1, 2]
    """
    fetched: queue.Queue[object] = queue.Queue(depth)
    left = threading.Event()

    def fetch() -> None:
        last: object = _END
        try:
            for item in items:
                if not _put(fetched, item, left):
                    return
        except BaseException as error:  # Raised again by the thread that takes the items.
            last = _Failure(error)
        _put(fetched, last, left)

    def taken() -> Iterator[T]:
        while (item := fetched.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=fetch, name="replay-ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        left.set()
        thread.join()


class Consumer(Generic[T]):
    """Handles items in order in a thread, at most `depth` of them late.

    Leaving the block normally waits until all are handled; leaving it through an error drops them.
    """

    def __init__(
        self, handle: Callable[[T], None], depth: int, *, release: Callable[[], None] | None = None
    ) -> None:
        """Handles nothing before the block is entered.

        Args:
            handle: takes one item.
            depth: items that may wait.
            release: ends whatever `handle` waits for; called where items are dropped, as the thread would
                never end where somebody has paused it.
        """
        self._handle, self._release = handle, release
        self._given: queue.Queue[object] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replay-behind", daemon=True)

    def __enter__(self) -> Consumer[T]:
        self._thread.start()
        return self

    def put(self, item: T) -> None:
        """Hands an item over; waits while `depth` are pending.

        Raises:
            BaseException: whatever handling an earlier item raised.
        """
        if not _put(self._given, item, self._stop):
            self._raise()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None:
            self._drop()
            return
        try:
            _put(self._given, _END, self._stop)
            self._thread.join()
        except BaseException:  # Ctrl-C meanwhile: what the items go to is about to be closed.
            self._drop()
            raise
        self._raise()

    def _drop(self) -> None:
        self._stop.set()
        if self._release is not None:
            self._release()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    item = self._given.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                if item is _END:
                    return
                self._handle(item)  # type: ignore[arg-type]
        except BaseException as error:  # Raised again by the thread that hands items over.
            self._error = error
            self._stop.set()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _put(target: queue.Queue[object], item: object, stop: threading.Event) -> bool:
    """Puts an item, waiting for room unless told to stop; says whether it was put."""
    while not stop.is_set():
        try:
            target.put(item, timeout=_POLL_S)
        except queue.Full:
            continue
        return True
    return False
