"""An exclusive lock on an output, a folder or a file: two runs never write one."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from data_prep.errors import DataError

LOCK_NAME = ".lock"
"""What a run that was killed may leave in its folder. It holds nothing and locks nothing."""

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})
"""What file systems answer that grant no locks: some mounts of NFS and Lustre, FUSE."""

_MOST_TRIES = 100

_LOG = logging.getLogger(__name__)
_SAID: set[int] = set()
"""Devices whose file system grants no locks, of which a line was logged."""
_OPEN: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()
"""Lock files that this process holds open."""


def _close_inherited() -> None:
    """A forked child, such as a worker that loads data, would hold the lock after its parent was killed."""
    for file in list(_OPEN):
        file.close()


os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def exclusive(
    folder: Path, *, file: str = LOCK_NAME, on_unlocked: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Keeps other runs out of a folder while the `with` block runs.

    The system releases the lock however the process ends. The file is removed at the end; one that a
    killed run left is taken over. Folders that are made for the lock and stay empty are removed after
    a failure.

    Args:
        folder: the folder to write, made where it is missing.
        file: the lock file, relative to the folder.
        on_unlocked: called once with a sentence where the file system grants no locks; the run goes on.
            None logs a warning, once for each file system.

    Raises:
        DataError: another run holds the lock.
        OSError: the lock file cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, exclusive(Path(folder)):
        ...     try:
        ...         with exclusive(Path(folder)):
        ...             pass
        ...     except DataError as error:
        ...         print(str(error).split(": ", 1)[1])
        another run is writing here; wait for it or stop it
    """
    with _holding(folder, folder / file, on_unlocked):
        yield


@contextmanager
def exclusive_file(target: Path) -> Iterator[None]:
    """As `exclusive`, for one file that is written: the lock lies next to it, under a hidden name.

    Raises:
        DataError: another run holds the lock.
        OSError: the lock file cannot be made.
    """
    with _holding(target, target.with_name(f".{target.name}{LOCK_NAME}"), None):
        yield


@contextmanager
def _holding(output: Path, path: Path, on_unlocked: Callable[[str], None] | None) -> Iterator[None]:
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        with _locked(output, path, on_unlocked):
            try:
                yield
            finally:
                with suppress(OSError):  # gone with its folder, or the folder has become read-only
                    path.unlink()
    except BaseException:
        with suppress(OSError):  # it holds what a later run goes on with
            for folder in made:
                folder.rmdir()
        raise


def _locked(output: Path, path: Path, on_unlocked: Callable[[str], None] | None) -> IO[bytes]:
    """The open lock file; whoever holds it open holds the lock."""
    for _ in range(_MOST_TRIES):
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as unless_locked:
            try:
                file = unless_locked.enter_context(path.open("ab"))
            except FileNotFoundError:
                continue  # the last holder removed the folder in this moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(f"{output}: another run is writing here; wait for it or stop it") from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                sentence = (
                    f"{output}: the file system grants no locks ({error.strerror}); "
                    "make sure that no second run writes here"
                )
                (on_unlocked or partial(_warn_once, os.fstat(file.fileno()).st_dev))(sentence)
                unless_locked.pop_all()
                return file
            if _lies_at(file, path):
                unless_locked.pop_all()
                _OPEN.add(file)
                return file
    raise DataError(f"{path}: cannot be made; remove it or choose another folder")


def _warn_once(device: int, sentence: str) -> None:
    if device not in _SAID:
        _SAID.add(device)
        _LOG.warning(sentence)


def _lies_at(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is still the one of this name: its last holder may just have removed it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
