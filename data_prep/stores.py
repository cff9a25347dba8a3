"""An object store, or any other place that fsspec knows: its failures are one line each, passing ones are tried again.

A store is addressed by a URL such as `s3://bucket/drives`. Where it lies and who asks comes from the environment, as
each store's package reads it: `AWS_ENDPOINT_URL` and `AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`,
`AZURE_STORAGE_CONNECTION_STRING`.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data_prep.errors import DataError, StoreError

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
"""What fsspec needs for a store; each is an extra of this package by the store's name."""
_WITHOUT_FOLDERS = frozenset({*PACKAGES, "s3a", "gcs", "abfs", "abfss", "adl", "memory"})
WAITS_S = (0.5, 1.0, 2.0)
"""Before a request is tried again. The stores' packages try again too, for seconds."""
_OF_THIS_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_VERSIONS = ("ETag", "etag", "md5Hash")
"""Fields by which stores tell one version of an object from another."""
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
"""Fields that say when it was written; a listing and a look at one object may round them differently."""
Answer = TypeVar("Answer")


def is_url(text: str | Path) -> bool:
    """Whether a text is an address and no local path; a path may have colons.

    Example:
        >>> [is_url(text) for text in ("s3://bucket/drives", "run:1/shards", "timm:resnet18")]
        [True, False, False]
    """
    return re.match(r"[a-z][a-z0-9+.-]*://", str(text)) is not None


def is_elsewhere(text: str | Path) -> bool:
    """Whether an address is one of a store; `file://` is this machine's own disk.

    Example:
        >>> [is_elsewhere(text) for text in ("s3://bucket/drives", "file:///mnt/drives", "run:1/shards")]
        [True, False, False]
    """
    return is_url(text) and not str(text).startswith("file://")


class Item(NamedTuple):
    """An object of a store."""

    bytes: int
    version: str
    """Changes when it is replaced by something else."""
    modified_s: float | None
    """When it was written, since 1970; None where the store does not say."""

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Item:
        """From what fsspec says of an object."""
        size, written = (
            int(about.get("size") or 0),
            next((about[name] for name in _TIMES if about.get(name)), None),
        )
        if isinstance(written, str):  # Google's
            written = datetime.fromisoformat(written)
        modified_s = written.timestamp() if isinstance(written, datetime) else written
        tag = next((about[name] for name in _VERSIONS if about.get(name)), modified_s)
        return cls(size, f"{size} {tag}", modified_s)


@dataclass(frozen=True)
class Store:
    """A folder of a store; made by `open`. Names are relative to it.

    Every method raises StoreError where the store cannot be reached or refuses, OSError of this disk's own where it
    is full, and FileNotFoundError where it says so.
    """

    url: str
    files: Any
    """fsspec's file system."""
    folder: str
    """As that file system names it."""

    @classmethod
    def open(cls, url: str) -> Store:
        """The folder at an address; asks the store for nothing.

        Raises:
            DataError: it is no URL of a folder, or its protocol is unknown or not installed.
        """
        try:
            import fsspec
        except ImportError:
            raise DataError(f"{url}: needs fsspec; install driving-xai[cluster]") from None
        if not is_url(url) or "::" in url:
            raise DataError(f"{url!r} is no URL of a folder; expected one such as s3://bucket/drives")
        protocol = url.partition("://")[0]
        try:
            # A listing that is kept would hide what other machines have written since.
            files, folder = fsspec.core.url_to_fs(url, use_listings_cache=False)
            # An archive or a view of another store has no folder of its own.
            if not isinstance(folder, str) or not folder.strip("/"):
                raise ValueError("it names no folder")
        except ImportError:
            needed = PACKAGES.get(protocol, "its fsspec package")
            extra = f", as with driving-xai[{protocol}]" if protocol in PACKAGES else ""
            raise DataError(f"{url}: needs {needed}; install it{extra}") from None
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise DataError(
                f"{url}: no store that is known here ({_first_line(error)}); install its fsspec package"
            ) from None
        return cls(url.rstrip("/"), files, folder.rstrip("/"))

    def listing(self) -> dict[str, Item]:
        """Every object below, by name; of a single object that the URL names, "" is its name."""
        found = self._tried("", lambda: self.files.find(self.folder, detail=True))
        names = {path: path.removeprefix(self.folder).lstrip("/") for path in found}
        return {
            names[path]: Item.of(about)
            for path, about in found.items()
            if not names[path].endswith("/")  # what some tools leave for an empty folder
        }

    def exists(self, name: str) -> bool:
        return self._tried(name, lambda: self.files.exists(self._path(name)))

    def read(self, name: str) -> bytes:
        return self._tried(name, lambda: self.files.cat_file(self._path(name)))

    def size(self, name: str) -> int:
        return int(self._tried(name, lambda: self.files.size(self._path(name))))

    def item(self, name: str) -> Item:
        """What lies there under a name now."""
        return Item.of(self._tried(name, lambda: self.files.info(self._path(name))))

    def write(self, name: str, data: bytes) -> None:
        self._make_folder(name)
        self._tried(name, lambda: self.files.pipe_file(self._path(name), data))

    def fetch(self, name: str, target: Path) -> None:
        """Copies an object into a local file."""
        self._tried(name, lambda: self.files.get_file(self._path(name), str(target)))

    def send(self, file: Path, name: str) -> None:
        """Copies a local file into the store."""
        self._make_folder(name)
        self._tried(name, lambda: self.files.put_file(str(file), self._path(name)))

    def remove(self, name: str) -> None:
        """Removes an object, or everything below a name; nothing where there is none."""
        if self.exists(name):
            self._tried(name, lambda: self.files.rm(self._path(name), recursive=True))

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}" if name else self.folder

    def _make_folder(self, name: str) -> None:
        """Object stores have no folders, and would make a bucket instead."""
        if self.url.partition("://")[0] not in _WITHOUT_FOLDERS:
            self._tried(name, lambda: self.files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True))

    def _tried(self, name: str, request: Callable[[], Answer]) -> Answer:
        where = f"{self.url}/{name}" if name else self.url
        for wait_s in (*WAITS_S, None):
            try:
                return request()
            except FileNotFoundError as error:
                if _is_bucket_missing(error):
                    raise StoreError(
                        f"{self.url}: there is no such bucket; make it, or check the address"
                    ) from None
                raise FileNotFoundError(errno.ENOENT, "no such object", where) from None
            # Each store's package raises what its own libraries raise, which need not be an OSError.
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _OF_THIS_DISK:
                    raise
                if wait_s is None or _is_final(error):
                    raise StoreError(f"{where}: {_reason(error)}") from None
            time.sleep(wait_s)
        raise AssertionError("the last try returns or raises")


def _is_final(error: Exception) -> bool:
    return isinstance(error, _FINAL) or "Credential" in type(error).__name__


def _is_bucket_missing(error: Exception) -> bool:
    return "bucket does not exist" in str(error) or "NoSuchBucket" in str(error)


def _reason(error: Exception) -> str:
    """What went wrong, and what to do."""
    said = _first_line(error)
    if "Credential" in type(error).__name__:
        return f"no credentials are found ({said}); set those of the store in the environment"
    if isinstance(error, PermissionError):
        return f"access is denied ({said}); check the credentials, and what they may do"
    if isinstance(error, _FINAL):
        return f"cannot be used ({said}); check the address"
    return f"the store does not answer as it should ({said}); check network and endpoint, and run it again"


def _first_line(error: BaseException) -> str:
    said = (str(error).splitlines() or [""])[0][:200]
    return said or type(error).__name__
