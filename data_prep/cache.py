"""The bounded cache of files that were fetched from stores: who holds what, and what goes when there is no room.

Below it, `views/KEY/PARENT/NAME` is a place, see `places`. A process that has one open holds it by a lock; of such a
place only shards are removed, which are fetched again, and none while it is being opened.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

from data_prep.errors import DataError, OutputError, StoreError
from data_prep.shards.atomic import TEMPORARY, replacing
from data_prep.shards.manifest import FILE_NAME, FOLDER

OUTGOING, VIEWS = "outgoing", "views"
"""Below the cache: where prep makes what it sends to a store, and where what was fetched lies. Nothing else there is
ever removed."""
_LOCKS = "locks"
"""Below the cache: a fixed number of empty files, and a count of bytes; a folder that was fetched has no others than its own."""
_SLOTS = 4096
"""Files share so many locks, and so do views. Two that share one wait for each other, and neither goes while one is in use."""
DEFAULT_CACHE_GB = 50.0
KEY = re.compile("[0-9a-f]{16}")
"""The name of a folder below `views`."""
_UNFINISHED_S = 3600.0
"""A temporary file that nobody has written to for so long was left by a process that is gone."""
_SPARE = 0.05
"""Share of the cache that is freed beyond what is needed, so that not every file that comes into a full one looks for room."""
_RECENT_S = 5.0
"""What was opened so lately may be about to be read, and stays even where the cache is over its bound."""
_HELD: dict[Path, IO[bytes]] = {}
"""Views that this process has opened, by a file that it holds locked until it ends."""


def cache_folder() -> Path:
    """Where fetched files lie: `DRIVING_XAI_CACHE`, or `driving-xai` in the user's folder of caches."""
    chosen = os.environ.get("DRIVING_XAI_CACHE")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "driving-xai"
    return (Path(chosen) if chosen else usual).absolute()


def cache_bytes() -> int:
    """How much may lie there: `DRIVING_XAI_CACHE_GB`, or 50.

    Raises:
        DataError: it is no positive number.
    """
    text = os.environ.get("DRIVING_XAI_CACHE_GB") or str(DEFAULT_CACHE_GB)
    try:
        size = float(text) * 1e9
        if not 0 < size < float("inf"):
            raise ValueError
    except ValueError:
        raise DataError(
            f"DRIVING_XAI_CACHE_GB is {text!r}; expected a number of gigabytes, such as 50"
        ) from None
    return int(size)


def hold(root: Path) -> None:
    """Keeps other processes from removing a view while this one runs; waits for one that is removing it."""
    if root in _HELD:
        return
    try:
        opened = _lock_file("view", root).open("ab")
    except OSError as error:
        raise _unwritable(error) from None
    with suppress(OSError):  # a file system without locks: what is in use may be fetched again
        fcntl.flock(opened, fcntl.LOCK_SH)
    _HELD[root] = opened


def is_held(root: Path) -> bool:
    """Whether this process holds a view."""
    return root in _HELD


@contextmanager
def alone(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Keeps other processes and threads from fetching, removing or opening the same file.

    Args:
        path: the file.
        wait: for those; otherwise what is yielded says whether it was granted.
    """
    with _locked(path, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB) as granted:
        yield granted


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Keeps others from removing a file, until it is open: then they may."""
    with _locked(path, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(path: Path, how: int) -> Iterator[bool]:
    try:
        file = _lock_file("file", path).open("ab")
    except OSError as error:
        raise _unwritable(error) from None
    with file:
        granted = True
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            granted = False
        except OSError:  # without locks it may be fetched twice
            pass
        yield granted


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """As `replacing`, with a full or read-only disk said in words of the cache."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except StoreError:
        raise
    except OSError as error:
        raise _unwritable(error) from None


def make_room(wanted: int) -> None:
    """Removes what was read longest ago until so many bytes fit.

    Raises:
        OutputError: the cache is smaller than that.
    """
    bound = cache_bytes()
    if wanted > bound:
        raise OutputError(
            f"{cache_folder()}: {wanted / 1e9:.3g} GB are needed at once, the cache takes {bound / 1e9:.3g}; set "
            "DRIVING_XAI_CACHE_GB to more"
        )
    with _counter() as counter:
        count = counter.read()
        lying = int(count) if count.isdigit() else bound
        if lying + wanted > bound:
            lying = _shrunk(bound - wanted, spare=int(_SPARE * bound))
        counter.truncate(0)
        with suppress(OSError):  # a full disk: next time files are looked at again
            counter.write(str(lying + wanted).encode())


@contextmanager
def _counter() -> Iterator[IO[bytes]]:
    """The file that says how many bytes lie in the cache, so that not every fetched file looks at all others.

    It counts what is about to be fetched, also where that fails, and forgets nothing that is removed by hand: rather
    too much than too little, and right again once all files are looked at.
    """
    try:
        file = (_locks_folder() / "bytes").open("a+b", buffering=0)
    except OSError as error:
        raise _unwritable(error) from None
    with file:
        with suppress(OSError):  # without locks the bound is kept roughly
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file


def _shrunk(bound: int, *, spare: int) -> int:
    """The bytes that lie in the cache, once what was read longest ago is removed where they were over a bound.

    Args:
        bound: the most that may stay.
        spare: how much less than that stays where something must go.
    """
    found = []
    for root in _views():
        for file in _files(root):
            with suppress(FileNotFoundError):  # a temporary file that has its name by now
                found.append((root, file, file.stat()))
    lying = sum(about.st_size for _, _, about in found)
    if lying <= bound:
        return lying
    for root, file, about in sorted(found, key=lambda each: each[2].st_atime):
        if lying <= bound - spare:
            break
        if _removed(root, file):
            lying -= about.st_size
    return lying


def _removed(root: Path, file: Path) -> bool:
    """Removes a file, unless somebody needs it."""
    with _unheld(root) as is_free:
        if not is_free and not _comes_again(root, file):
            return False
        with suppress(OSError), alone(file, wait=False) as granted:
            if granted and not _is_recent(file):
                file.unlink()
                if is_free:
                    _remove_empty_folders(file)
                return True
    return False


def _remove_empty_folders(file: Path) -> None:
    """Removes those above a file, up to `views`; its view must be free."""
    for folder in file.parents:
        if folder == cache_folder() / VIEWS:
            return
        try:
            folder.rmdir()
        except OSError:  # it holds something
            return


@contextmanager
def _unheld(root: Path) -> Iterator[bool]:
    """Whether no process holds a view; while that is so, whoever wants to waits."""
    if root in _HELD:
        yield False
        return
    with _lock_file("view", root).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # no locks
            pass
        yield True


def _is_recent(file: Path) -> bool:
    about = file.stat()
    if file.name.endswith(TEMPORARY):
        return time.time() - about.st_mtime <= _UNFINISHED_S
    return time.time() - about.st_atime <= _RECENT_S


def _comes_again(root: Path, file: Path) -> bool:
    """Whether a view fetches the file again when it is opened: shards of an output."""
    return file.parent == root / FOLDER and (root / FILE_NAME).exists()


def _views() -> Iterator[Path]:
    for root in (cache_folder() / VIEWS).glob("*/*/*"):
        if KEY.fullmatch(root.parts[-3]):
            yield root


def _files(root: Path) -> Iterator[Path]:
    """What a view consists of, and temporary files."""
    yield from (path for path in [root, *root.rglob("*")] if path.is_file())


def _lock_file(kind: Literal["file", "view"], path: Path) -> Path:
    """The file whose lock stands for a fetched file, or for a view."""
    below = path.absolute().relative_to(cache_folder()).as_posix()
    slot = int.from_bytes(hashlib.sha256(below.encode()).digest()[:8]) % _SLOTS
    return _locks_folder() / f"{kind}-{slot:04d}"


def _locks_folder() -> Path:
    folder = cache_folder() / _LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _unwritable(error: OSError) -> OutputError:
    return OutputError(
        f"{cache_folder()}: the cache cannot be written ({error.strerror or error}); free space, or set "
        "DRIVING_XAI_CACHE to a folder with room"
    )
