"""ROS1 messages by their definition text: where each field of a serialised message is.

A bag carries the definition of every message type in it. Libraries turn that text into Python
source and run it; a bag is untrusted, so here the text is only read, into a flat list of fields.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.errors import DataError

MAX_FIELDS = 512
"""Fields of a message, nested ones counted; the largest standard messages have about 60."""
MAX_DEPTH = 8

_HEADER = "uint32 seq\ntime stamp\nstring frame_id\n"
# The messages of 2016, for bags that were stripped of their definitions.
FALLBACK_DEFINITIONS: Mapping[str, str] = {
    "sensor_msgs/CompressedImage": "Header header\nstring format\nuint8[] data\n",
    "sensor_msgs/Image": (
        "Header header\nuint32 height\nuint32 width\nstring encoding\n"
        "uint8 is_bigendian\nuint32 step\nuint8[] data\n"
    ),
    "dbw_mkz_msgs/SteeringReport": (
        "Header header\nfloat32 steering_wheel_angle\nfloat32 steering_wheel_angle_cmd\n"
        "float32 steering_wheel_torque\nfloat32 speed\nbool enabled\nbool override\nbool driver\n"
        "bool fault_wdc\nbool fault_bus1\nbool fault_bus2\nbool fault_calibration\nbool fault_connector\n"
    ),
    "dbw_mkz_msgs/WheelSpeedReport": (
        "Header header\nfloat32 front_left\nfloat32 front_right\nfloat32 rear_left\nfloat32 rear_right\n"
    ),
}

_SCALARS: Mapping[str, str] = {
    "bool": "<B", "byte": "<b", "char": "<B",
    "int8": "<b", "uint8": "<B", "int16": "<h", "uint16": "<H",
    "int32": "<i", "uint32": "<I", "int64": "<q", "uint64": "<Q",
    "float32": "<f", "float64": "<d",
    "time": "<II", "duration": "<ii",
}  # fmt: skip
_FIELD = re.compile(r"([A-Za-z][\w/]*)(\[(\d{0,9})\])?\s+([A-Za-z]\w*)")
_SEPARATOR = re.compile(r"^={20,}\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a flattened message."""

    name: str
    """With the names of the messages around it: `header.stamp`."""
    kind: str
    """A struct format, `string`, or `messages`: a list of messages, behind which no field can be found.

    While a definition is read, `message` stands for a nested message before its own fields.
    """
    count: int | None = None
    """Length of a fixed array; -1 for a list that carries its length; None for a single value."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The fields of one message type in order. Picklable.

    Example:
        >>> layout = Layout.parse("my_msgs/Speed", "uint8 gear\\nfloat32 speed # m/s")
        >>> layout.read(b"\\x03\\x00\\x00\\x20\\x40", ["speed"])
        {'speed': 2.5}
    """

    message_type: str
    fields: tuple[Field, ...]

    @classmethod
    def parse(cls, message_type: str, definition: str) -> Layout:
        """Reads a definition text as a bag stores it, with the types it uses after it.

        Args:
            message_type: `package/Name`.
            definition: the text; where it is blank, the 2016 definition of the type, if it is known.

        Raises:
            DataError: a line is no field, a type is not defined, or there are too many fields.
        """
        text = definition if definition.strip() else FALLBACK_DEFINITIONS.get(message_type, "")
        if not text:
            raise DataError(f"the bag does not define {message_type}; record it again with its definition")
        parts = _SEPARATOR.split(text)
        types = {"std_msgs/Header": _HEADER} | dict(_named(part) for part in parts[1:])
        fields: list[Field] = []
        for field in _flatten(parts[0], types, prefix="", depth=0, within=message_type):
            fields.append(field)
            # Nested messages count even where they are empty: they could nest exponentially.
            if len(fields) > MAX_FIELDS:
                raise DataError(f"{message_type} defines over {MAX_FIELDS} fields; the bag is damaged")
        return cls(message_type=message_type, fields=tuple(f for f in fields if f.kind != "message"))

    def has(self, name: str) -> bool:
        return any(field.name == name for field in self.fields)

    def require(self, names: Sequence[str]) -> None:
        """
        Raises:
            DataError: a field is not there, or lies behind a list of messages.
        """
        reachable = []
        for field in self.fields:
            if field.kind == "messages":
                break
            reachable.append(field.name)
        missing = [name for name in names if name not in reachable]
        if missing:
            raise DataError(
                f"{self.message_type} has fields {', '.join(reachable[:20])}; expected also {', '.join(missing)}; "
                "the bag holds another version of the message"
            )

    def starts_with_header(self) -> bool:
        """Whether the first 12 bytes are a sequence number and the time stamp."""
        return [field.name for field in self.fields[:2]] == ["header.seq", "header.stamp"]

    def read(self, data: bytes, names: Sequence[str]) -> dict[str, Any]:
        """Takes fields out of a serialised message and checks its length.

        Returns:
            Name to value: times in ns, a list of `uint8` as bytes, other lists as bytes of their values.

        Raises:
            DataError: the bytes do not fit the definition.
        """
        values: dict[str, Any] = {}
        at = 0
        for field in self.fields:
            if field.kind == "messages":
                return values
            value, at = self._value(field, data, at)
            if field.name in names:
                values[field.name] = value
        if at != len(data):
            raise DataError(
                f"a {self.message_type} of {len(data)} bytes, its definition takes {at}; the bag is damaged"
            )
        return values

    def _value(self, field: Field, data: bytes, at: int) -> tuple[Any, int]:
        if field.kind != "string" and field.count is None:
            end = self._end(field, data, at, struct.calcsize(field.kind))
            numbers = struct.unpack_from(field.kind, data, at)
            return (numbers[0] if len(numbers) == 1 else numbers[0] * 10**9 + numbers[1]), end
        count = field.count
        if count is None or count < 0:  # a string is a list of characters
            end = self._end(field, data, at, 4)
            (count,) = struct.unpack_from("<I", data, at)
            at = end
        if field.kind == "string" and field.count is not None:
            return None, self._after_strings(field, data, at, count)
        size = 1 if field.kind == "string" else struct.calcsize(field.kind)
        end = self._end(field, data, at, count * size)
        value = data[at:end]
        return (value.decode("utf-8", errors="replace") if field.kind == "string" else value), end

    def _after_strings(self, field: Field, data: bytes, at: int, count: int) -> int:
        # Each string takes at least its length, so a count beyond that is refused before looping.
        self._end(field, data, at, 4 * count)
        for _ in range(count):
            start = self._end(field, data, at, 4)
            at = self._end(field, data, start, struct.unpack_from("<I", data, at)[0])
        return at

    def _end(self, field: Field, data: bytes, at: int, size: int) -> int:
        if at + size > len(data):
            raise DataError(
                f"a {self.message_type} of {len(data)} bytes ends inside its field {field.name}; the bag is damaged"
            )
        return at + size


def _named(part: str) -> tuple[str, str]:
    """(type, its lines) of a part that starts with `MSG: package/Name`."""
    first, _, rest = part.lstrip("\r\n").partition("\n")
    return first.removeprefix("MSG:").strip(), rest


def _flatten(text: str, types: Mapping[str, str], *, prefix: str, depth: int, within: str) -> Iterator[Field]:
    if depth > MAX_DEPTH:
        raise DataError(f"{within} nests messages over {MAX_DEPTH} deep; the bag is damaged")
    for line in text.splitlines():
        code = line.split("#", 1)[0].strip()
        if not code or "=" in line.split("#", 1)[0]:  # blank, or a constant, which takes no bytes
            continue
        match = _FIELD.fullmatch(code)
        if match is None:
            raise DataError(f"{within} defines {code[:60]!r}, expected a type and a name; the bag is damaged")
        kind, brackets, length, name = match.groups()
        count = None if brackets is None else int(length or -1)
        if kind in _SCALARS or kind == "string":
            yield Field(name=prefix + name, kind=_SCALARS.get(kind, kind), count=count)
        elif count is not None:
            yield Field(name=prefix + name, kind="messages", count=count)
        else:
            yield Field(name=prefix + name, kind="message")
            nested = _definition_of(kind, types, within)
            yield from _flatten(nested, types, prefix=f"{prefix}{name}.", depth=depth + 1, within=within)


def _definition_of(kind: str, types: Mapping[str, str], within: str) -> str:
    if kind in types:
        return types[kind]
    # A bare name is of the same package or of std_msgs.
    for name, text in types.items():
        if name.rpartition("/")[2] == kind:
            return text
    raise DataError(
        f"{within} uses the type {kind[:60]!r}, which the bag does not define; the bag is damaged"
    )
