"""ROS1 bags of version 2.0: which topics there are, and single messages by where they lie.

The index is read with the rosbags library. Messages are read here, one chunk at a time, because a
chunk is compressed, comes from outside, and must not be inflated beyond what a bag can honestly hold.
"""

from __future__ import annotations

import bz2
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import lz4.frame
import numpy as np
from jaxtyping import Int64
from rosbags.rosbag1 import Reader, ReaderError

from data_prep.errors import DataError

MAX_CHUNK_BYTES = 256 * 2**20
"""A chunk that claims to inflate to more is refused, and so is a message of more. Recorders close a chunk at 0.75 MiB."""
MAX_HEADER_BYTES = 2**20

_MAGIC = b"#ROSBAG V"
_MESSAGE, _CHUNK, _CONNECTION = 2, 5, 7
# What rosbags lets through for a file that is no bag, cut, or whose index points nowhere.
_INDEX_FAULTS = (
    ReaderError,
    AssertionError,
    struct.error,
    LookupError,
    ValueError,
    OverflowError,
    EOFError,
    MemoryError,
    OSError,
)


def is_bag(path: Path) -> bool:
    """Whether a file starts as a ROS1 bag does."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class Messages:
    """Where the messages of one topic lie, in the order they were received. Picklable."""

    receive_ns: Int64[np.ndarray, " N"]
    connection: Int64[np.ndarray, " N"]
    chunk: Int64[np.ndarray, " N"]
    """Position of the message's chunk in the file."""
    offset: Int64[np.ndarray, " N"]
    """Position of the message in its inflated chunk."""

    def __len__(self) -> int:
        return len(self.receive_ns)

    def take(self, which: np.ndarray) -> Messages:
        """Some of the messages, by index or mask."""
        return Messages(
            receive_ns=self.receive_ns[which],
            connection=self.connection[which],
            chunk=self.chunk[which],
            offset=self.offset[which],
        )


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One topic of a bag."""

    message_type: str
    """`package/Name`."""
    definition: str
    count: int


class BagIndex:
    """The topics of an open bag and where their messages lie."""

    def __init__(self, path: Path, reader: Reader) -> None:
        self._path = path
        self._reader = reader
        self.topics: Mapping[str, Topic] = {
            name: self._topic(name) for name in sorted({c.topic for c in reader.connections})
        }

    def messages(self, topic: str) -> Messages:
        """Where the messages of a topic lie; all its connections together."""
        rows = [
            (entry.time, connection.id, entry.chunk_pos, entry.offset)
            for connection in self._reader.connections
            if connection.topic == topic
            for entry in self._reader.indexes[connection.id]
        ]
        try:
            columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
        except OverflowError:
            raise _damaged(self._path, "a position beyond any file") from None
        order = np.argsort(columns[0], kind="stable")
        return Messages(
            receive_ns=columns[0][order],
            connection=columns[1][order],
            chunk=columns[2][order],
            offset=columns[3][order],
        )

    def _topic(self, name: str) -> Topic:
        connections = [c for c in self._reader.connections if c.topic == name]
        if len({(c.msgtype, c.digest) for c in connections}) > 1:
            raise DataError(
                f"{self._path.name}: topic {name} carries several message types; "
                "split the bag by type before reading it"
            )
        first = connections[0]
        return Topic(
            message_type=first.msgtype.replace("/msg/", "/"),
            definition=first.msgdef.data,
            count=sum(c.msgcount for c in connections),
        )


@contextmanager
def open_index(path: Path) -> Iterator[BagIndex]:
    """Reads a bag's index; no message is read.

    Raises:
        DataError: not a ROS1 bag of version 2.0, cut short, not indexed, or its index is damaged.
    """
    reader = None
    try:
        reader = _BoundedReader(path)
        reader.open()
    except _INDEX_FAULTS as error:
        if reader is not None and reader.bio is not None:  # older rosbags leave the file open
            reader.bio.close()
        raise _damaged(path, str(error)) from None
    try:
        yield BagIndex(path, reader)
    finally:
        reader.close()


class _BoundedReader(Reader):
    """rosbags' reader that stops where index records are shared by several chunks.

    A small bag could otherwise list the same long record for thousands of chunks and fill memory.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._budget = path.stat().st_size

    def read_index_data(self, pos: int, indexes: dict) -> None:
        assert self.bio is not None
        start = self.bio.tell()
        super().read_index_data(pos, indexes)
        self._budget -= self.bio.tell() - start
        if self._budget < 0:
            raise ReaderError("its chunks share index records")


def _damaged(path: Path, reason: str) -> DataError:
    first = (reason.splitlines() or [""])[0].strip().rstrip(".")
    why = first.replace(str(path), path.name) or "its index contradicts itself"
    return DataError(f"{path.name}: not a readable ROS1 bag ({why}); copy it again or run `rosbag reindex`")


class OpenChunk(NamedTuple):
    """One chunk's records: a part of the file itself, or inflated."""

    position: int
    source: BinaryIO
    start: int
    """Position of the first record in `source`."""
    end: int


class MessageReader:
    """Reads messages of a bag by where they lie, holding at most one inflated chunk.

    Example:
        >>> with MessageReader(path) as reader:  # doctest: +SKIP
        ...     data = reader.read(messages, 0)
    """

    def __init__(self, path: Path, *, spare: dict[Path, OpenChunk] | None = None) -> None:
        """
        Args:
            path: the bag.
            spare: where the last reader left the chunk it had inflated, and this one leaves its own:
                neighbouring ranges end and start in one chunk, and bz2 inflates at 5 MB/s.
        """
        self._path = path
        self._spare = {} if spare is None else spare
        self._file: BinaryIO | None = None
        self._chunk: OpenChunk | None = None
        self.compressions: set[str] = set()
        """Of the chunks read so far: `none`, `bz2`, `lz4`."""

    def __enter__(self) -> MessageReader:
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            raise DataError(f"{self._path.name}: cannot be read ({error.strerror}); check the file") from None
        self._chunk = self._spare.pop(self._path, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._chunk is not None and self._chunk.source is not self._file:
            self._spare[self._path] = self._chunk
        if self._file is not None:
            self._file.close()
        self._file = self._chunk = None

    def read(self, messages: Messages, index: int, *, most: int | None = None) -> bytes:
        """One serialised message, or its first `most` bytes.

        Raises:
            DataError: the chunk or the message is damaged, or is not what the index says.
        """
        position, offset = int(messages.chunk[index]), int(messages.offset[index])
        try:
            if self._chunk is None or self._chunk.position != position:
                self._chunk = None  # let the old one go before the next is inflated
                self._chunk = self._open_chunk(position)
            return self._message(self._chunk, offset, messages, index, most)
        except _Fault as fault:
            raise DataError(
                f"{self._path.name}: message {offset} of the chunk at byte {position} {fault}; copy the bag again"
            ) from None
        except OSError as error:
            raise DataError(f"{self._path.name}: cannot be read ({error.strerror}); check the disk") from None

    def _open_chunk(self, position: int) -> OpenChunk:
        file = self._file
        assert file is not None, "use MessageReader in `with`"
        file.seek(position)
        header = _header(file)
        if header.get(b"op") != bytes([_CHUNK]):
            raise _Fault("lies in no chunk record")
        compression = header.get(b"compression", b"").decode("ascii", errors="replace")
        size, packed = _number(header.get(b"size", b"")), _number(file.read(4))
        start = file.tell()
        self.compressions.add(compression)
        if compression == "none":
            return OpenChunk(position, file, start, start + packed)
        if size > MAX_CHUNK_BYTES or packed > MAX_CHUNK_BYTES:
            raise _Fault(f"lies in a chunk of {max(size, packed):,} bytes, over the {MAX_CHUNK_BYTES:,} read")
        return OpenChunk(position, BytesIO(_inflate(compression, file.read(packed), size)), 0, size)

    def _message(
        self, chunk: OpenChunk, offset: int, messages: Messages, index: int, most: int | None
    ) -> bytes:
        source = chunk.source
        source.seek(chunk.start + offset)
        header = _header(source)
        while header.get(b"op") == bytes([_CONNECTION]):  # some recorders index the connection before it
            source.seek(_data_end(source, chunk))
            header = _header(source)
        if header.get(b"op") != bytes([_MESSAGE]):
            raise _Fault("is no message record")
        seconds, nanoseconds = struct.unpack("<II", _exactly(header.get(b"time", b""), 8))
        is_indexed = (
            _number(header.get(b"conn", b"")) == messages.connection[index]
            and seconds * 10**9 + nanoseconds == messages.receive_ns[index]
        )
        if not is_indexed:
            raise _Fault("is another one than the index says")
        end = _data_end(source, chunk)
        size = end - source.tell() if most is None else min(end - source.tell(), most)
        if size > MAX_CHUNK_BYTES:
            raise _Fault(f"claims {size:,} bytes, over the {MAX_CHUNK_BYTES:,} read")
        return _exactly(source.read(size), size)


class _Fault(Exception):
    """What is wrong with a record; `MessageReader.read` says where."""


def _data_end(source: BinaryIO, chunk: OpenChunk) -> int:
    """Where the record's data ends; the source then stands at its start."""
    size = _number(source.read(4))
    if source.tell() + size > chunk.end:
        raise _Fault("reaches beyond its chunk")
    return source.tell() + size


def _header(source: BinaryIO) -> dict[bytes, bytes]:
    size = _number(source.read(4))
    if size > MAX_HEADER_BYTES:
        raise _Fault(f"has a header of {size:,} bytes")
    data = _exactly(source.read(size), size)
    fields, at = {}, 0
    while at < size:
        start = at + 4
        at = start + _number(data[at:start])
        name, separator, value = data[start:at].partition(b"=")
        if at > size or not separator:
            raise _Fault("has a damaged header")
        fields[name] = value
    return fields


def _number(data: bytes) -> int:
    return int.from_bytes(_exactly(data, 4), "little")


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise _Fault("is cut short")
    return data


def _inflate(compression: str, packed: bytes, size: int) -> bytes:
    """Inflates to `size` bytes at most one over, whatever the packed bytes would grow to."""
    try:
        if compression == "bz2":
            data = bz2.BZ2Decompressor().decompress(packed, max_length=size + 1)
        elif compression == "lz4":
            data = lz4.frame.LZ4FrameDecompressor().decompress(packed, max_length=size + 1)
        else:
            raise _Fault(f"lies in a chunk compressed with {compression[:20]!r}, expected none, bz2 or lz4")
    except (OSError, ValueError, RuntimeError, EOFError, MemoryError):
        raise _Fault(f"lies in a damaged {compression} chunk") from None
    if len(data) != size:
        raise _Fault(f"lies in a {compression} chunk that does not inflate to its {size:,} bytes")
    return data
