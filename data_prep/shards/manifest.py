"""`manifest.json`: what the shards are, where they came from, and the hash of each. Written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from data_prep.errors import DataError, quoted
from data_prep.shards.atomic import read_bounded, replacing, sha256_of

SCHEMA = "driving-xai-shards/1"
FILE_NAME = "manifest.json"
FOLDER = "shards"
"""Where the shards lie, relative to the manifest."""
MAX_MANIFEST_BYTES = 256 * 2**20
"""A shard of 2,000 frames adds 300 bytes."""
_OBJECTS = ("config", "signals", "quality", "provenance")
_KINDS: Mapping[str, tuple[type, ...]] = {
    "kind": (str,),
    **dict.fromkeys(_OBJECTS, (dict,)),
    **dict.fromkeys(("vehicle", "geometry"), (dict, type(None))),
    **dict.fromkeys(("drives", "shards"), (list,)),
}


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One file of the output, as the manifest lists it."""

    path: str
    """Relative to the manifest, with forward slashes."""
    sha256: str
    bytes: int
    rows: int
    drive: str
    """The drive or image set that it holds."""
    dropped: Mapping[str, list[int]] = field(default_factory=dict)
    """Frames found unusable only when read: reason to their index in the source drive."""

    @classmethod
    def of(
        cls, root: Path, path: str, *, rows: int, drive: str, dropped: Mapping[str, list[int]]
    ) -> ShardEntry:
        """Hashes a finished file below `root`."""
        file = root / path
        size = file.stat().st_size
        return cls(path=path, sha256=sha256_of(file), bytes=size, rows=rows, drive=drive, dropped=dropped)

    @classmethod
    def from_json(cls, value: Any) -> ShardEntry:
        """Raises DataError where a field is missing, unknown, or of another type."""
        names = {f.name for f in fields(cls)}
        if not isinstance(value, dict) or set(value) != names:
            raise DataError(f"a shard's entry has {_keys(value)}; expected {sorted(names)}; prepare again")
        types = {"path": str, "sha256": str, "drive": str, "bytes": int, "rows": int, "dropped": dict}
        if any(type(value[name]) is not kind for name, kind in types.items()):
            raise DataError(f"shard {quoted(value['path'])}: a field has the wrong type; prepare again")
        dropped = value["dropped"].values()
        if any(type(rows) is not list or any(type(row) is not int for row in rows) for rows in dropped):
            raise DataError(f"shard {quoted(value['path'])}: dropped is no list of numbers; prepare again")
        if min(value["bytes"], value["rows"]) < 0 or not _stays_inside(value["path"]):
            raise DataError(f"shard {quoted(value['path'])}: a field cannot be; prepare again")
        return cls(**value)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of a shards folder. JSON values only; no time of day, no absolute path.

    Example:
        >>> Manifest.load(Path("missing"))
        Traceback (most recent call last):
        data_prep.errors.DataError: missing: no manifest.json; expected a folder written by `driving-xai prep`
    """

    kind: Literal["sequences", "images"]
    config: dict[str, Any]
    """The resolved configuration of the preparation."""
    vehicle: dict[str, Any] | None
    """`Vehicle` by field; None for images."""
    geometry: dict[str, Any] | None
    """`Geometry` by field; None where images were kept as they are."""
    drives: list[dict[str, Any]]
    """One object for each drive or image set: name, source, camera, provenance."""
    shards: list[ShardEntry]
    index: ShardEntry
    signals: dict[str, Any]
    """Sequences: smoothing, tolerance_s, speed_present, slip (on or off), label unit. Images: label names."""
    quality: dict[str, Any]
    """What was kept and dropped and why, by drive."""
    provenance: dict[str, Any]
    """Reader, base name of the source, versions of what wrote the bytes, fingerprint of the plan."""
    schema: str = SCHEMA

    @classmethod
    def load(cls, root: Path) -> Manifest:
        """Reads the manifest of a shards folder.

        Raises:
            DataError: there is none, it is damaged, or it is of another schema version.
        """
        path = Path(root) / FILE_NAME
        try:
            return cls.parse(read_bounded(path, most=MAX_MANIFEST_BYTES), where=path)
        except DataError:
            raise
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{root}: no {FILE_NAME}; expected a folder written by `driving-xai prep`{_preparation(root)}"
            ) from None
        except ValueError as error:
            raise DataError(
                f"{path}: {error}, which is no manifest; prepare again with --overwrite"
            ) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None

    @classmethod
    def parse(cls, data: bytes, *, where: Path | str) -> Manifest:
        """The manifest that these bytes are.

        Args:
            where: they lie, for messages.

        Raises:
            DataError: they are none, or of another schema version.
        """
        try:
            value = json.loads(data.decode())
            canonical_json(value)  # refuses what JSON has no words for: NaN, infinity, half a character
        except (ValueError, RecursionError):
            raise DataError(f"{where}: not valid JSON; prepare again with --overwrite") from None
        return cls._from_json(value, where)

    @classmethod
    def _from_json(cls, value: Any, path: Path | str) -> Manifest:
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SCHEMA:
            raise DataError(
                f"{path}: schema {quoted(schema)}, expected {SCHEMA!r}; prepare again with this version"
            )
        names = {f.name for f in fields(cls)}
        if set(value) != names:
            raise DataError(
                f"{path}: has {_keys(value)}, expected {sorted(names)}; prepare again with --overwrite"
            )
        for name, kinds in _KINDS.items():
            if type(value[name]) not in kinds:
                raise DataError(f"{path}: {name} is {quoted(value[name])}; prepare again with --overwrite")
        if value["kind"] not in ("sequences", "images") or any(type(d) is not dict for d in value["drives"]):
            raise DataError(f"{path}: kind or drives cannot be; prepare again with --overwrite")
        shards = [ShardEntry.from_json(entry) for entry in value["shards"]]
        return cls(**{**value, "shards": shards, "index": ShardEntry.from_json(value["index"])})

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no NaN, one newline at the end."""
        return canonical_json(asdict(self))

    def save(self, root: Path, *, scratch: Path | None = None) -> None:
        """Writes the manifest so that it is either whole or absent; its temporary file lies in `scratch`.

        Raises:
            DataError: it is larger than any reader takes.
        """
        data = self.to_bytes()
        require_readable(len(data), shards=len(self.shards), drives=len(self.drives))
        with replacing(Path(root) / FILE_NAME, scratch=scratch) as temporary:
            temporary.write_bytes(data)

    @property
    def sha256(self) -> str:
        """Identifies the data: the manifest holds the hash of every file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


def require_readable(size: int, *, shards: int, drives: int) -> None:
    """Refuses a manifest that nothing could open.

    Args:
        size: in bytes, or the least that it will be.

    Raises:
        DataError: it is over `MAX_MANIFEST_BYTES`.
    """
    if size > MAX_MANIFEST_BYTES:
        raise DataError(
            f"{FILE_NAME} of {shards:,} shards and {drives:,} drives would have {size / 2**20:,.0f} MiB, at most "
            f"{MAX_MANIFEST_BYTES / 2**20:,.0f} can be read; use a larger frames_per_shard, or prepare the drives in several outputs"
        )


def canonical_json(value: Any) -> bytes:
    """The same bytes for the same value, on every machine.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False)
    return (text + "\n").encode()


def _stays_inside(path: str) -> bool:
    """Whether a shard's path is one that prep writes: relative, with forward slashes, never upwards."""
    parts = path.split("/")
    return not any(part in ("", ".", "..") for part in parts) and not set(path) & set("\0\\:")


def _keys(value: Any) -> Any:
    return quoted(sorted(value), most=200) if isinstance(value, dict) else type(value).__name__


def _preparation(root: Path) -> str:
    """How to prepare what lies there, where it is a source that a reader knows."""
    # Readers know nothing of shards and shards of readers, but for this advice.
    from data_prep.readers import recognise

    try:
        return f", here by `driving-xai prep {recognise(Path(root))} {root} SHARDS`"
    except (DataError, OSError):
        return ""
