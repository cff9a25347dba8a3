"""Places that are read: a local path as it is, a URL as a local folder that fills itself from the store.

`local` turns what a user typed into a path. Of shards that lie in a store, it fetches manifest and index; `present`
fetches each shard when it is first opened, and takes it only with the hash that the manifest names. Anything else (a
checkpoint, results, an image, a recording) is fetched whole. What was fetched stays in a cache of bounded size, under
a name that holds the hash of the manifest or of the listing, so that what is replaced in the store is fetched anew.

The path says where it came from: `CACHE/KEY/PARENT/NAME/...`, where KEY is that hash, PARENT and NAME the URL. So a
path can be handed to a worker on another machine, which fetches what it opens.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote, unquote

from data_prep import cache
from data_prep.errors import DataError, StoreError
from data_prep.shards.atomic import sha256_of
from data_prep.shards.manifest import FILE_NAME, MAX_MANIFEST_BYTES, Manifest, ShardEntry
from data_prep.stores import Item, Store, is_elsewhere, is_url

_TRIES = 2
"""A file whose hash is wrong is fetched once more, in case the way damaged it."""
_CONNECTIONS = 8
Opened = TypeVar("Opened")


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


def local_output(text: str | Path) -> Path:
    """The path of an output on this machine; only `prep` writes to stores.

    Raises:
        DataError: it is a store's address.

    Example:
        >>> local_output("file:///mnt/scores")
        PosixPath('/mnt/scores')
    """
    if is_elsewhere(text):
        raise DataError(
            f"{text}: results are written to this machine; give a folder here, and copy it once it is finished"
        )
    return local(text)


def outgoing(url: str) -> Path:
    """Where an output that goes to a store is made, below the cache."""
    parent, _, name = url.rstrip("/").rpartition("/")
    return cache.cache_folder() / cache.OUTGOING / quote(parent, safe=":/").replace("/", "+") / name


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
    if not cache.is_held(view.root):
        _opened(Store.open(view.url), key=view.key)
    with cache.kept(path), suppress(OSError):
        os.utime(path)  # read last: what was not is removed first
        return path
    view.fetch_named(path)
    return path


def opened(path: Path, how: Callable[[Path], Opened]) -> Opened:
    """Opens a file as `present` gives it, and keeps other processes from removing it before it is open.

    Args:
        path: the file.
        how: opens it.

    Raises:
        DataError, StoreError, OutputError: as `present`.
        OSError: what `how` raises.
    """
    if _View.holding(path) is None:
        return how(path)
    while True:
        present(path)
        with cache.kept(path):
            if path.exists():  # else it was removed in this moment
                return how(path)


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
        return cls(
            key,
            url,
            cache.cache_folder() / cache.VIEWS / key / quote(parent, safe=":/").replace("/", "+") / name,
        )

    @classmethod
    def holding(cls, path: Path) -> _View | None:
        """The view that a path lies in; None for other paths."""
        folder, absolute = cache.cache_folder() / cache.VIEWS, path.absolute()
        if not absolute.is_relative_to(folder):
            return None
        parts = absolute.relative_to(folder).parts
        if len(parts) < 3 or not cache.KEY.fullmatch(parts[0]):
            return None
        parent = unquote(parts[1].replace("+", "/"))
        return cls(parts[0], f"{parent}/{parts[2]}", folder.joinpath(*parts[:3]))

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
        with cache.alone(path):
            if path.exists():  # fetched before, or by another process meanwhile
                return path
            cache.make_room(entry.bytes)
            for _ in range(_TRIES):
                with suppress(_DamagedError), cache.writing(path) as temporary:
                    _fetch(store, name, temporary)
                    if temporary.stat().st_size != entry.bytes or sha256_of(temporary) != entry.sha256:
                        raise _DamagedError
                    return path
        raise DataError(
            f"{self.url}/{name}: its bytes are not those of the manifest's hash; run `driving-xai verify`, and "
            "publish it again"
        )

    def fetch_whole(self, store: Store, listing: Mapping[str, Item]) -> None:
        """Fetches every object of a listing that is not here yet; as old as it is in the store."""
        missing = [name for name in listing if not self._file(name).exists()]
        cache.make_room(sum(listing[name].bytes for name in missing))

        def fetch(name: str) -> None:
            with cache.alone(self._file(name)), cache.writing(self._file(name)) as temporary:
                _fetch(store, name, temporary)
                if (found := temporary.stat().st_size) != listing[name].bytes:
                    raise StoreError(
                        f"{self.url}/{name}: {found} bytes arrived of {listing[name].bytes}; run it again"
                    )
                if not _is_still(store, name, listing[name]):
                    raise DataError(f"{self.url}/{name}: was replaced while it was fetched; run it again")
                if (modified_s := listing[name].modified_s) is not None:
                    os.utime(temporary, (time.time(), modified_s))

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


def _is_still(store: Store, name: str, item: Item) -> bool:
    """Whether the store has the version that a listing named."""
    try:
        return store.item(name).version == item.version
    except FileNotFoundError:
        return False


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
    cache.hold(view.root)
    if manifest is None:
        assert listing is not None
        view.fetch_whole(store, listing)
        return view
    known = Manifest.parse(
        manifest, where=f"{store.url}/{FILE_NAME}", read=lambda part: view.fetch_entry(part).read_bytes()
    )
    if not (view.root / FILE_NAME).exists():
        cache.make_room(len(manifest))
        with cache.writing(view.root / FILE_NAME) as temporary:
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
