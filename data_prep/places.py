"""Places that are read: a local path as it is, a URL as a local folder that fills itself from the store.

`local` turns what a user typed into a path. Of shards that lie in a store, it fetches manifest and index; `present`
fetches each shard when it is first opened, and takes it only with the hash that the manifest names. Anything else (a
checkpoint, results, an image, a recording) is fetched whole. What was fetched stays in a cache of bounded size, under
a name that holds the hash of the manifest or of the listing, so that what is replaced in the store is fetched anew.

The path says where it came from: `CACHE/KEY/PARENT/NAME/...`, where KEY is that hash, PARENT and NAME the URL. So a
path can be handed to a worker on another machine, which fetches what it opens.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Literal, NamedTuple
from urllib.parse import quote, unquote

from data_prep.errors import DataError, OutputError, StoreError
from data_prep.shards.atomic import TEMPORARY, replacing, sha256_of
from data_prep.shards.manifest import FILE_NAME, FOLDER, MAX_MANIFEST_BYTES, Manifest, ShardEntry
from data_prep.stores import Item, Store, is_elsewhere, is_url

OUTGOING, VIEWS = "outgoing", "views"
"""Below the cache: where prep makes what it sends to a store, and where what was fetched lies. Nothing else there is
ever removed."""
DEFAULT_CACHE_GB = 50.0
_TRIES = 2
"""A file whose hash is wrong is fetched once more, in case the way damaged it."""
_CONNECTIONS = 8
_KEY = re.compile("[0-9a-f]{16}")
_UNFINISHED_S = 3600.0
"""A temporary file that nobody has written to for so long was left by a process that is gone."""
_RECENT_S = 5.0
"""What was opened so lately may be about to be read, and stays even where the cache is over its bound."""
_HELD: dict[Path, IO[bytes]] = {}
"""Views that this process has opened, by a file that it holds locked until it ends."""


def cache_folder() -> Path:
    """Where fetched files lie: `DRIVING_XAI_CACHE`, or `driving-xai` in the user's folder of caches."""
    told = os.environ.get("DRIVING_XAI_CACHE")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "driving-xai"
    return (Path(told) if told else usual).absolute()


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


def local(text: str | Path) -> Path:
    """A path that can be read, for what a user typed.

    Args:
        text: a local path, which stays as it is, or a URL of a store.

    Raises:
        DataError: the URL names no store that is known and installed, or nothing lies there.
        StoreError: the store cannot be reached, or refuses.
        OutputError: the cache cannot be written, or is too small.

    Example:
        >>> local("run:1/shards")
        PosixPath('run:1/shards')
    """
    if is_elsewhere(text):
        return _opened(Store.open(str(text)), key=None).root
    return Path(str(text).removeprefix("file://")) if is_url(text) else Path(text)


def outgoing(url: str) -> Path:
    """Where an output that goes to a store is made, below the cache."""
    parent, _, name = url.rstrip("/").rpartition("/")
    return cache_folder() / OUTGOING / quote(parent, safe=":/").replace("/", "+") / name


def local_text(text: str) -> str:
    """As `local`, for what may also be the name of a model; a text that is no URL stays as it is."""
    return str(local(text)) if is_url(text) else text


def present(path: Path) -> Path:
    """The path, once what it names lies on this machine; call it before a shard is opened.

    Raises:
        DataError: the store's file is missing, is not the one that the manifest names, or was replaced.
        StoreError, OutputError: as `local`.
    """
    view = _View.holding(path)
    if view is None:
        return path
    if path.exists() and view.root in _HELD:
        with suppress(OSError):
            os.utime(path)  # read last: what was not is removed first
        return path
    if view.root not in _HELD:
        _opened(Store.open(view.url), key=view.key)
    if not path.exists():
        view.fetch_named(path)
    return path


def renewed(path: Path) -> Path:
    """As `present`, but fetched from the store again: what lies there now is what is checked."""
    view = _View.holding(path)
    if view is not None:
        _entries(view.root)  # while all parts of the manifest are here
        path.unlink(missing_ok=True)
    return present(path)


def names_below(root: Path) -> Iterator[str]:
    """Every file of a folder, relative to it; of a place, what lies in the store."""
    view = _View.holding(root)
    if view is not None:
        yield from Store.open(view.url).listing()
        return
    yield from (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def named(path: Path) -> str:
    """What a user calls a path: of a place, its URL."""
    view = _View.holding(path)
    if view is None:
        return str(path)
    below = path.absolute().relative_to(view.root).as_posix()
    return view.url if below == "." else f"{view.url}/{below}"


class _View(NamedTuple):
    """A place on this machine."""

    key: str
    url: str
    root: Path

    @classmethod
    def of(cls, url: str, key: str) -> _View:
        parent, _, name = url.rpartition("/")
        # One folder for the whole parent, whatever its depth: a plus stands for a slash.
        return cls(key, url, cache_folder() / VIEWS / key / quote(parent, safe=":/").replace("/", "+") / name)

    @classmethod
    def holding(cls, path: Path) -> _View | None:
        """The view that a path lies in; None for other paths."""
        folder, absolute = cache_folder() / VIEWS, path.absolute()
        if not absolute.is_relative_to(folder):
            return None
        parts = absolute.relative_to(folder).parts
        if len(parts) < 3 or not _KEY.fullmatch(parts[0]):
            return None
        parent = unquote(parts[1].replace("+", "/"))
        return cls(parts[0], f"{parent}/{parts[2]}", folder.joinpath(*parts[:3]))

    def hold(self) -> None:
        """Keeps other processes from removing it while this one runs."""
        if self.root in _HELD:
            return
        file = self._lock_file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            opened = file.open("ab")
        except OSError as error:
            raise _unwritable(error) from None
        with suppress(OSError):  # a file system without locks: what is in use may be fetched again
            fcntl.flock(opened, fcntl.LOCK_SH)
        _HELD[self.root] = opened

    @property
    def _lock_file(self) -> Path:
        return self.root.with_name(f".{self.root.name}.held")

    def is_held(self) -> bool:
        """Whether any process has it open."""
        if self.root in _HELD:
            return True
        with suppress(OSError), self._lock_file.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def fetch_named(self, path: Path) -> None:
        """Fetches one file that the manifest names.

        Raises:
            DataError: it names no such file, or the store's is another.
        """
        name = path.absolute().relative_to(self.root).as_posix()
        entry = _entries(self.root).get(name)
        if entry is None:
            raise DataError(f"{self.url}/{name}: no file that its {FILE_NAME} names")
        self.fetch_entry(entry)

    def fetch_entry(self, entry: ShardEntry) -> Path:
        """Fetches one file of the output, unless it is here; raises DataError where the store's is another."""
        store, name, path = Store.open(self.url), entry.path, self.root / entry.path
        with _alone(path):
            if path.exists():  # fetched before, or by another process meanwhile
                return path
            _make_room(entry.bytes)
            for _ in range(_TRIES):
                with suppress(_DamagedError), _writing(path) as temporary:
                    _fetch(store, name, temporary)
                    if temporary.stat().st_size != entry.bytes or sha256_of(temporary) != entry.sha256:
                        raise _DamagedError
                    return path
        raise DataError(
            f"{self.url}/{name}: its bytes are not those of the manifest's hash; run `driving-xai verify`, and "
            "publish it again"
        )

    def fetch_whole(self, store: Store, listing: Mapping[str, Item]) -> None:
        """Fetches every object of a listing that is not here yet."""
        missing = [name for name in listing if not self._file(name).exists()]
        _make_room(sum(listing[name].bytes for name in missing))

        def fetch(name: str) -> None:
            with _alone(self._file(name)), _writing(self._file(name)) as temporary:
                _fetch(store, name, temporary)
                if (found := temporary.stat().st_size) != listing[name].bytes:
                    raise StoreError(
                        f"{self.url}/{name}: {found} bytes arrived of {listing[name].bytes}; run it again"
                    )

        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for _ in pool.map(fetch, missing):
                pass

    def _file(self, name: str) -> Path:
        file = self.root / name if name else self.root
        if not file.resolve().is_relative_to(self.root.resolve()):
            raise DataError(
                f"{self.url}/{name}: a name that leads out of its folder; remove it from the store"
            )
        return file


class _DamagedError(Exception):
    """What was fetched is not what the manifest names."""


def _opened(store: Store, *, key: str | None) -> _View:
    """The view of a store's folder or object, held, with all that is needed at once.

    Args:
        key: of the version that it must be; None takes what lies there now.
    """
    manifest = listing = None
    try:
        if store.size(FILE_NAME) > MAX_MANIFEST_BYTES:
            raise DataError(f"{store.url}/{FILE_NAME}: over {MAX_MANIFEST_BYTES:,} bytes; prepare it again")
        manifest = store.read(FILE_NAME)
        found = hashlib.sha256(manifest)
    except FileNotFoundError:
        listing = store.listing()
        if not listing:
            raise DataError(f"{store.url}: nothing lies there; check the address") from None
        found = hashlib.sha256(repr(sorted(listing.items())).encode())
    view = _View.of(store.url, found.hexdigest()[:16])
    if key not in (None, view.key):
        raise DataError(f"{store.url}: was replaced while it was read; run it again")
    view.hold()
    if manifest is None:
        assert listing is not None
        view.fetch_whole(store, listing)
        return view
    known = Manifest.parse(
        manifest, where=f"{store.url}/{FILE_NAME}", read=lambda part: view.fetch_entry(part).read_bytes()
    )
    if not (view.root / FILE_NAME).exists():
        _make_room(len(manifest))
        with _writing(view.root / FILE_NAME) as temporary:
            temporary.write_bytes(manifest)
    for entry in known.index:
        view.fetch_entry(entry)
    return view


@lru_cache(maxsize=8)
def _entries(root: Path) -> Mapping[str, ShardEntry]:
    """The files of a view by name; its folder's name holds the manifest's hash, so they never change."""
    return {entry.path: entry for entry in Manifest.load(root).files}


def _fetch(store: Store, name: str, target: Path) -> None:
    try:
        store.fetch(name, target)
    except FileNotFoundError:
        raise DataError(f"{store.url}/{name}: no such object; publish it again") from None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps other processes and threads from fetching the same file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f".{path.name}.lock").open("ab")
    except OSError as error:
        raise _unwritable(error) from None
    with file:
        with suppress(OSError):  # without locks it may be fetched twice
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """As `replacing`, with a full or read-only disk said in words of the cache."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except StoreError:
        raise
    except OSError as error:
        raise _unwritable(error) from None


def _unwritable(error: OSError) -> OutputError:
    return OutputError(
        f"{cache_folder()}: the cache cannot be written ({error.strerror or error}); free space, or set "
        "DRIVING_XAI_CACHE to a folder with room"
    )


def _make_room(wanted: int) -> None:
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
    found = [(file, file.stat()) for file in _files(removable="no matter")]
    excess = sum(about.st_size for _, about in found) + wanted - bound
    if excess <= 0:
        return
    removable = set(_files(removable="only"))
    for file, about in sorted(found, key=lambda each: each[1].st_mtime):
        if excess <= 0:
            return
        kept_s = _UNFINISHED_S if file.name.endswith(TEMPORARY) else _RECENT_S
        if file in removable and time.time() - about.st_mtime > kept_s:
            with suppress(OSError):  # another process was quicker
                file.unlink()
            excess -= about.st_size


def _files(*, removable: Literal["only", "no matter"]) -> Iterator[Path]:
    """The files of all views; of one that is in use, only shards can be removed, which are fetched again."""
    for root in (cache_folder() / VIEWS).glob("*/*/*"):
        view = _View.holding(root)
        if view is None or root.name.startswith("."):
            continue
        below = [root] if root.is_file() else (path for path in root.rglob("*") if path.is_file())
        lazy = (root / FILE_NAME).exists()
        held = removable == "only" and view.is_held()
        for file in below:
            if not file.name.endswith(".lock") and (not held or (lazy and file.parent.name == FOLDER)):
                yield file
