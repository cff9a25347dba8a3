"""ROS 2 bags and MCAP files: a camera topic, and steering and speed from any topic, read by `rosbags` without ROS."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import apsw
import numpy as np
from jaxtyping import Int64
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection, TopicInfo
from rosbags.rosbag2 import ReaderError
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, TypesysError, get_typestore

from data_prep.errors import DataError, SettingNeededError, quoted
from data_prep.geometry import Reduction, decode_image
from data_prep.readers.paths import drive_name, printable, visible
from data_prep.readers.ros1_images import raw_image
from data_prep.readers.units import AS_ROS, ControlUnits
from data_prep.schema import Drive, Image, Signal

NAME = "ros2-bag"

METADATA = "metadata.yaml"
SUFFIXES = (".mcap", ".db3")
COMPRESSED, RAW = "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image"

# `rosbags` lets these through where a file is damaged: its formats are parsed as they come.
_DAMAGE = (
    AnyReaderError,
    ReaderError,
    SerdeError,
    TypesysError,
    apsw.Error,
    sqlite3.Error,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def recognises(source: Path) -> bool:
    """Whether the source is a ROS 2 bag or an MCAP file, or a folder with some directly inside."""
    return bool(_bags(source))


def drives(
    source: Path,
    *,
    image: str | None = None,
    steering: str | None = None,
    speed: str | None = None,
    controls: ControlUnits = AS_ROS,
    reduced: Reduction = 1,
) -> list[Drive]:
    """Reads one bag, or every bag directly inside a folder, as a drive each.

    The images stay in the bag. Times are those of the messages' headers; the time at which the recorder got a
    message stands in where it has none.

    Args:
        source: a bag's folder with `metadata.yaml`, an `.mcap` or `.db3` file, or a folder of those.
        image: the camera's topic; None takes the only one with images.
        steering: topic and field of the angle, as `/vehicle/steering_report:steering_wheel_angle`; nested
            fields are joined by points, and items of arrays are numbers (`/drive:drive.steering_angle`, `/c:data.0`).
        speed: topic and field of the speed, likewise.
        controls: units of the angles and speeds; each of its fields is an option.
        reduced: shrink while decoding JPEG, faster and not exact.

    Raises:
        DataError: there is no bag, one is damaged, or a topic or field is not there.
    """
    bags = _bags(source)
    if not bags:
        raise DataError(
            f"{source}: no ROS 2 bag found; expected a folder with {METADATA}, an .mcap or .db3 file, "
            "or a folder with some directly inside"
        )
    wanted = _Topics(image, _Field.parse(steering, "steering"), _Field.parse(speed, "speed"))
    return [_drive(bag, wanted, controls, reduced) for bag in bags]


def _bags(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix in SUFFIXES else []
    if not source.is_dir():
        return []
    if (source / METADATA).is_file():
        return [source]
    entries = visible(source)
    files = [entry for entry in entries if entry.is_file() and entry.suffix in SUFFIXES]
    return files + [entry for entry in entries if entry.is_dir() and (entry / METADATA).is_file()]


class _Field(NamedTuple):
    """A number in the messages of a topic."""

    topic: str
    path: tuple[str, ...]

    @classmethod
    def parse(cls, text: str | None, option: str) -> _Field | None:
        if text is None:
            return None
        topic, _, path = text.rpartition(":")
        if not topic or not path:
            raise DataError(
                f"{option} is {quoted(text)}, expected TOPIC:FIELD as /vehicle/steering_report:steering_wheel_angle; "
                f"correct --option {option}=TOPIC:FIELD"
            )
        return cls(topic, tuple(path.split(".")))

    def __str__(self) -> str:
        return f"{self.topic}:{'.'.join(self.path)}"

    def of(self, message: Any) -> float:
        """The number, or NaN where it is none.

        Raises:
            DataError: the message has no such field.
        """
        value = message
        for name in self.path:
            names = [each.name for each in fields(value)] if is_dataclass(value) else []
            if name in names:
                value = getattr(value, name)
            elif isinstance(value, np.ndarray | list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            else:
                raise DataError(
                    f"{self.topic} has no field {quoted('.'.join(self.path))}; there are {', '.join(names) or 'none'}"
                )
        try:
            return float(value)
        except (TypeError, ValueError):
            raise DataError(
                f"{self.topic}: {quoted('.'.join(self.path))} is no number; name a field of it"
            ) from None


class _Topics(NamedTuple):
    """What to read."""

    image: str | None
    steering: _Field | None
    speed: _Field | None


@contextmanager
def _opened(bag: Path) -> Iterator[AnyReader]:
    """The open bag; whatever is wrong with it is one line."""
    try:
        # Bags of before Iron hold no definitions; those of the standard messages are in every release.
        with AnyReader([bag], default_typestore=get_typestore(Stores.ROS2_HUMBLE)) as reader:
            yield reader
    except DataError:
        raise
    except _DAMAGE as error:
        reason = quoted(str(error).strip().partition("\n")[0] or type(error).__name__, most=120)
        raise DataError(f"{bag}: not a bag that can be read ({reason}); copy it again") from None


def _drive(bag: Path, wanted: _Topics, controls: ControlUnits, reduced: Reduction) -> Drive:
    with _opened(bag) as reader:
        topic = wanted.image or _only_camera(bag, reader.topics)
        camera = _connections(bag, reader, topic)
        if camera[0].msgtype not in (COMPRESSED, RAW):
            raise DataError(
                f"{bag}: {topic} holds {camera[0].msgtype}, expected {COMPRESSED} or {RAW}; choose another"
            )
        frames = _frames(reader, camera)
        steering = None if wanted.steering is None else _signal(bag, reader, wanted.steering)
        speed = None if wanted.speed is None else _signal(bag, reader, wanted.speed)
    if not len(frames.time_ns):
        raise DataError(f"{bag}: {topic} has no message; choose another topic")
    return Drive(
        name=drive_name(bag),
        source=NAME,
        camera=topic,
        vehicle=controls.car,
        time_ns=frames.time_ns,
        images=Ros2Images(
            path=bag.resolve(), topic=topic, log_ns=tuple(frames.log_ns.tolist()), reduced=reduced
        ),
        steering_wheel=controls.steering(steering),
        speed=controls.speed(speed),
        provenance={
            "bag": printable(bag.resolve().name),
            "image_topic": topic,
            "steering": None if wanted.steering is None else str(wanted.steering),
            "speed": None if wanted.speed is None else str(wanted.speed),
            "frames_timed_by_recorder": frames.unstamped,
        },
    )


def _only_camera(bag: Path, topics: dict[str, TopicInfo]) -> str:
    cameras = [name for name, info in topics.items() if info.msgtype in (COMPRESSED, RAW) and info.msgcount]
    if len(cameras) != 1:
        listed = ", ".join(cameras) or f"none; its topics are {', '.join(sorted(topics)) or 'none'}"
        message = (
            f"{bag}: {len(cameras)} topics hold images ({quoted(listed, most=400)}); add --option image=TOPIC"
        )
        if not cameras:
            raise DataError(message)
        fullest = max(cameras, key=lambda name: topics[name].msgcount)
        raise SettingNeededError(message, reader_options={"image": fullest})
    return cameras[0]


def _connections(bag: Path, reader: AnyReader, topic: str) -> list[Connection]:
    found = [each for each in reader.connections if each.topic == topic]
    if not found:
        listed = quoted(", ".join(sorted(reader.topics)) or "none", most=400)
        raise DataError(f"{bag}: has no topic {quoted(topic)}; there are {listed}")
    return found


class _Frames(NamedTuple):
    """The camera's messages in the order of the bag."""

    time_ns: Int64[np.ndarray, " T"]
    log_ns: Int64[np.ndarray, " T"]
    """When the recorder got them."""
    unstamped: int


def _frames(reader: AnyReader, camera: list[Connection]) -> _Frames:
    """Reads the stamp out of each message without decoding its image."""
    times, logged, unstamped = [], [], 0
    for _, log_ns, data in reader.messages(camera):
        stamp_ns = _header_stamp_ns(data)
        unstamped += not stamp_ns
        times.append(stamp_ns or log_ns)
        logged.append(log_ns)
    return _Frames(np.array(times, dtype=np.int64), np.array(logged, dtype=np.int64), unstamped)


def _header_stamp_ns(data: bytes) -> int:
    """The stamp of a CDR message that begins with a `std_msgs/Header`; 0 where it has none.

    Source: OMG DDS-RTPS 2.5, 10.5: four bytes of encapsulation, whose second says the byte order.
    """
    if len(data) < 12:
        return 0
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return seconds * 10**9 + nanoseconds if seconds >= 0 and nanoseconds < 10**9 else 0


def _signal(bag: Path, reader: AnyReader, field: _Field) -> Signal:
    times, values = [], []
    for connection, log_ns, data in reader.messages(_connections(bag, reader, field.topic)):
        message = reader.deserialize(data, connection.msgtype)
        values.append(field.of(message))
        header = getattr(message, "header", None)
        stamp = getattr(header, "stamp", None)
        stamp_ns = 0 if stamp is None else int(stamp.sec) * 10**9 + int(stamp.nanosec)
        times.append(stamp_ns if stamp_ns > 0 else log_ns)
    if not values:
        raise DataError(f"{bag}: {field.topic} has no message; leave it out or choose another topic")
    return Signal(time_ns=np.array(times, dtype=np.int64), value=np.array(values, dtype=np.float64))


@dataclass(frozen=True, kw_only=True)
class Ros2Images:
    """A drive's images in a bag: an `ImageSource`, read front to back."""

    path: Path
    topic: str
    log_ns: tuple[int, ...]
    """When the recorder got each frame, by which it is found again."""
    reduced: Reduction = 1
    sequential: ClassVar[bool] = True

    def read(self, start: int, stop: int) -> Iterator[Image]:
        """Yields the RGB images of frames `start` to `stop` (exclusive) in order.

        Raises:
            DataError: a message or its image is damaged; the message names bag and frame.
        """
        first_ns, last_ns = self.log_ns[start], self.log_ns[stop - 1]
        before = sum(1 for each in self.log_ns[:start] if each == first_ns)
        with _opened(self.path) as reader:
            camera = _connections(self.path, reader, self.topic)
            found = reader.messages(camera, start=first_ns, stop=last_ns + 1)
            for number, (connection, _, data) in enumerate(found, start - before):
                if start <= number < stop:
                    name = f"{self.path.name} frame {number}"
                    yield self._decoded(
                        reader.deserialize(data, connection.msgtype), connection.msgtype, name
                    )

    def _decoded(self, message: Any, kind: str, name: str) -> Image:
        if kind == COMPRESSED:
            return decode_image(message.data.tobytes(), name=name, reduced=self.reduced)
        return raw_image(
            message.data.tobytes(),
            height=int(message.height),
            width=int(message.width),
            step=int(message.step),
            encoding=str(message.encoding),
            name=name,
        )

    def files(self, start: int, stop: int) -> Iterator[tuple[str, str]]:
        """The bag's files."""
        del start, stop
        if self.path.is_file():
            yield self.path.name, str(self.path)
            return
        for path in visible(self.path):
            if path.is_file():
                yield f"{self.path.name}/{path.name}", str(path)
