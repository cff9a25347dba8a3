"""`manifest.json`: what the shards are, where they came from, and the hash of each. Written last.

Of an output with many shards it is in parts, see `manifest_parts`; in memory both are one `Manifest`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data_prep.errors import DataError, quoted
from data_prep.shards import manifest_parts
from data_prep.shards.atomic import read_bounded, replacing, sha256_of

SCHEMA = "driving-xai-shards/1"
FILE_NAME = "manifest.json"
FOLDER = "shards"
"""Where the shards lie, relative to the manifest."""
MAX_MANIFEST_BYTES = 256 * 2**20
"""Of each of its files. A shard of 2,000 frames adds 300 bytes."""
_OBJECTS = ("config", "signals", "quality", "provenance")
_KINDS: Mapping[str, tuple[type, ...]] = {
    "kind": (str,),
    **dict.fromkeys(_OBJECTS, (dict,)),
    **dict.fromkeys(("vehicle", "geometry"), (dict, type(None))),
    **dict.fromkeys(("drives", "shards", "index"), (list,)),
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
    index: Sequence[ShardEntry]
    """The files of the index, in the order of its rows: one, or one for each part."""
    signals: dict[str, Any]
    """Sequences: smoothing, tolerance_s, speed_present, slip (on or off), label unit. Images: label names."""
    quality: dict[str, Any]
    """What was kept and dropped and why, by drive."""
    provenance: dict[str, Any]
    """Reader, base name of the source, versions of what wrote the bytes, fingerprint of the plan."""
    shards_per_part: int | None = None
    """None: everything is in one file."""

    @classmethod
    def load(cls, root: Path) -> Manifest:
        """Reads the manifest of a shards folder.

        Raises:
            DataError: there is none, it is damaged, or it is of another schema version.
        """
        path = Path(root) / FILE_NAME
        try:
            data = read_bounded(path, most=MAX_MANIFEST_BYTES)
            return cls.parse(
                data,
                where=path,
                read=lambda part: read_bounded(path.parent / part.path, most=MAX_MANIFEST_BYTES),
            )
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
    def parse(cls, data: bytes, *, where: Path | str, read: Callable[[ShardEntry], bytes]) -> Manifest:
        """The manifest that these bytes of `manifest.json` are.

        Args:
            where: they lie, for messages.
            read: gives the bytes of a part; they are compared with its hash here.

        Raises:
            DataError: they are none, or of another schema version, or a part is missing or another.
        """
        value = _parsed(data, where)
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema == SCHEMA:
            return cls._from_json(value | {"index": [value.get("index")]}, where)
        if schema != manifest_parts.SCHEMA:
            raise DataError(
                f"{where}: schema {quoted(schema)}, expected {SCHEMA!r} or {manifest_parts.SCHEMA!r}; prepare again "
                "with this version"
            )
        parts, per_part = value.get("parts"), value.get("shards_per_part")
        if type(parts) is not list or type(per_part) is not int or per_part < 1:
            raise DataError(f"{where}: parts or shards_per_part cannot be; prepare again with --overwrite")
        if type(value.get("signals")) is not dict:
            raise DataError(
                f"{where}: signals is {quoted(value.get('signals'))}; prepare again with --overwrite"
            )
        read_parts = (_parsed(_part(ShardEntry.from_json(part), where, read), where) for part in parts)
        return cls._from_json(manifest_parts.join(value, read_parts, where=where), where, per_part)

    @classmethod
    def _from_json(cls, value: dict[str, Any], path: Path | str, per_part: int | None = None) -> Manifest:
        names = {f.name for f in fields(cls)} - {"shards_per_part"} | {"schema"}
        if set(value) != names:
            raise DataError(
                f"{path}: has {_keys(value)}, expected {sorted(names)}; prepare again with --overwrite"
            )
        for name, kinds in _KINDS.items():
            if type(value[name]) not in kinds:
                raise DataError(f"{path}: {name} is {quoted(value[name])}; prepare again with --overwrite")
        if value["kind"] not in ("sequences", "images") or any(type(d) is not dict for d in value["drives"]):
            raise DataError(f"{path}: kind or drives cannot be; prepare again with --overwrite")
        shards, index = (
            [ShardEntry.from_json(entry) for entry in value[name]] for name in ("shards", "index")
        )
        members = {name: value[name] for name in names - {"schema"}}
        return cls(**{**members, "shards": shards, "index": index, "shards_per_part": per_part})

    def to_bytes(self) -> bytes:
        """`manifest.json` as canonical JSON: sorted keys, no NaN, one newline at the end."""
        if self.shards_per_part is None:
            (index,) = self.index
            return canonical_json(self._members() | {"schema": SCHEMA, "index": asdict(index)})
        top, _ = manifest_parts.divide(self._members(), self.shards_per_part)
        parts = [asdict(part) for part in self.parts]
        return canonical_json(top | {"schema": manifest_parts.SCHEMA, "parts": parts})

    @cached_property
    def parts(self) -> Sequence[ShardEntry]:
        """The files that hold the manifest but for `manifest.json`; none where everything is in that."""
        entries = []
        for path, part in self._part_contents():
            data, rows = canonical_json(part), len(part["shards"])
            digest = hashlib.sha256(data).hexdigest()
            entries.append(ShardEntry(path=path, sha256=digest, bytes=len(data), rows=rows, drive=""))
        return entries

    @property
    def files(self) -> list[ShardEntry]:
        """Every file of the output but `manifest.json`."""
        return [*self.shards, *self.index, *self.parts]

    def _part_contents(self) -> Iterator[tuple[str, manifest_parts.Content]]:
        """Path and content of each part."""
        if self.shards_per_part is not None:
            _, parts = manifest_parts.divide(self._members(), self.shards_per_part)
            names = manifest_parts.part_names(len(self.shards), self.shards_per_part)
            yield from zip((f"{manifest_parts.FOLDER}/{name}.json" for name in names), parts, strict=True)

    def _members(self) -> manifest_parts.Content:
        """As JSON values."""
        members = asdict(self)
        del members["shards_per_part"]
        return members

    def save(self, root: Path, *, scratch: Path | None = None) -> None:
        """Writes the manifest so that it is either whole or absent; its temporary files lie in `scratch`.

        Raises:
            DataError: a file of it is larger than any reader takes.
        """
        top = self.to_bytes()
        require_readable(
            max([len(top), *(part.bytes for part in self.parts)]),
            shards=len(self.shards),
            drives=len(self.drives),
        )
        for path, part in self._part_contents():
            (Path(root) / path).parent.mkdir(exist_ok=True)
            with replacing(Path(root) / path, scratch=scratch) as temporary:
                temporary.write_bytes(canonical_json(part))
        with replacing(Path(root) / FILE_NAME, scratch=scratch) as temporary:
            temporary.write_bytes(top)

    @cached_property
    def sha256(self) -> str:
        """Identifies the data: the manifest holds the hash of every file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


class Readable(NamedTuple):
    """What can be read of a manifest, also while parts of it are missing or damaged."""

    provenance: dict[str, Any]
    shards: list[ShardEntry]
    """The shards of the parts that can be read."""
    lost: list[ShardEntry]
    """The parts that cannot."""

    @classmethod
    def parse(cls, data: bytes, *, where: Path | str, read: Callable[[ShardEntry], bytes]) -> Readable:
        """As `Manifest.parse`, but a part that is missing or damaged costs only the shards that it lists.

        Raises:
            DataError: `manifest.json` itself cannot be used.
        """
        try:
            whole = Manifest.parse(data, where=where, read=read)
            return cls(whole.provenance, whole.shards, [])
        except DataError:
            top = _parsed(data, where)
            if not isinstance(top, dict) or top.get("schema") != manifest_parts.SCHEMA:
                raise
            kinds = {"provenance": dict, "signals": dict, "parts": list}
            if any(type(top.get(name)) is not kind for name, kind in kinds.items()):
                raise
            shards, lost = [], []
            for part in map(ShardEntry.from_json, top["parts"]):
                try:
                    listed = manifest_parts.join(top, [_parsed(_part(part, where, read), where)], where=where)
                    shards += [ShardEntry.from_json(entry) for entry in listed["shards"]]
                except ValueError:  # also where the file is larger than any reader takes
                    lost.append(part)
            if not lost:
                raise
            return cls(top["provenance"], shards, lost)

    @classmethod
    def load(cls, root: Path) -> Readable:
        """As `parse`, of a shards folder on this machine."""
        path = root / FILE_NAME
        return cls.parse(
            read_bounded(path, most=MAX_MANIFEST_BYTES),
            where=path,
            read=lambda part: read_bounded(root / part.path, most=MAX_MANIFEST_BYTES),
        )


def require_readable(size: int, *, shards: int, drives: int) -> None:
    """Refuses a manifest that nothing could open.

    Args:
        size: of its largest file in bytes, or the least that it will be.

    Raises:
        DataError: it is over `MAX_MANIFEST_BYTES`.
    """
    if size > MAX_MANIFEST_BYTES:
        raise DataError(
            f"a file of the manifest of {shards:,} shards and {drives:,} drives would have {size / 2**20:,.0f} MiB, "
            f"at most {MAX_MANIFEST_BYTES / 2**20:,.0f} can be read; use a larger frames_per_shard, or prepare the "
            "drives in several outputs"
        )


def _parsed(data: bytes, where: Path | str) -> Any:
    try:
        value = json.loads(data.decode())
        canonical_json(value)  # refuses what JSON has no words for: NaN, infinity, half a character
    except (ValueError, RecursionError):
        raise DataError(f"{where}: not valid JSON; prepare again with --overwrite") from None
    return value


def _part(entry: ShardEntry, where: Path | str, read: Callable[[ShardEntry], bytes]) -> bytes:
    """The bytes of a part, once they are those of its hash."""
    if entry.bytes > MAX_MANIFEST_BYTES:
        raise DataError(
            f"{where}: its part {entry.path} has over {MAX_MANIFEST_BYTES:,} bytes; prepare it again"
        )
    try:
        data = read(entry)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{where}: its part {entry.path} is missing; prepare again with --resume") from None
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise DataError(
            f"{where}: the bytes of its part {entry.path} are not those of its hash; prepare again with --resume"
        )
    return data


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
