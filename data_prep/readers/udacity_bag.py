"""Udacity's car as it was recorded: ROS1 bags, read without ROS.

Camera topics are `/{left,center,right}_camera/image_color`, raw or with `/compressed`; steering and
speed come from `/vehicle/steering_report`: the steering wheel's angle in rad, positive to the left,
and m/s. Times are those of the message headers, which is when a message was taken; the time it
reached the recorder stands in where a header has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from data_prep.errors import DataError, SettingNeededError, quoted
from data_prep.geometry import Reduction
from data_prep.readers.cameras import Cameras, check_correction, chosen, correction_of, name_of, shifted
from data_prep.readers.paths import drive_name, visible
from data_prep.readers.ros1_bag import MessageReader, Messages, Topic, is_bag, open_index
from data_prep.readers.ros1_images import FIELDS, BagImages, BagPart
from data_prep.readers.ros1_messages import Layout
from data_prep.schema import VEHICLES, Drive, Signal
from data_prep.signals import MOST_SPEED_MPS, MOST_STEERING_RAD, credible

NAME = "udacity-bag"
Parts = Literal["separate", "joined"]

STEERING_TOPIC = "/vehicle/steering_report"
WHEEL_SPEED_TOPIC = "/vehicle/wheel_speed_report"
WHEEL_RADIUS_M = 0.33
"""Rolling radius of the MKZ's 245/45R18 tyres: 0.339 m unloaded, less about 3 percent."""
JOIN_GAP_NS = 1_000_000_000
"""Bags are parts of one recording where the next starts at most this long after the last ended."""

_STAMP = 12
"""Bytes of a message header up to the end of its time stamp."""
_WHEELS = ("front_left", "front_right", "rear_left", "rear_right")
# Other packages' reports may be in degrees; these are all in rad.
_REPORT_TYPES = re.compile(r"dbw_(mkz|fca|ford)_msgs/(SteeringReport|WheelSpeedReport)")


def recognises(source: Path) -> bool:
    """Whether the source is a ROS1 bag or a folder with bags directly inside or one level down."""
    return bool(_bags(source))


def drives(
    source: Path,
    *,
    camera: Cameras = "center",
    topic: str | None = None,
    parts: Parts = "separate",
    side_camera_correction_rad: float = 0.0,
    wheel_radius_m: float = WHEEL_RADIUS_M,
    reduced: Reduction = 1,
) -> list[Drive]:
    """Reads one bag, or every bag of a folder, as drives in the order of their time.

    The images stay in the bags: this reads the index, every time stamp and the vehicle's reports.

    Args:
        source: the bag, the folder, or the folder of folders of bags.
        camera: which of the three cameras, or `all`, a drive each; the bags are then gone through thrice.
        topic: the camera's topic in bags that name it differently.
        parts: `separate` makes a drive of each bag; `joined` makes one of consecutive bags with at
            most a second between them, as a recorder leaves that splits its output.
        side_camera_correction_rad: what is taken from the steering of the left camera, and added to
            that of the right: seen from the left, the same road asks for steering more to the right.
        wheel_radius_m: for the speed of bags whose steering report has none.
        reduced: shrink while decoding, faster and not exact.

    Raises:
        DataError: there is no bag, one is malformed, or it has no such camera topic.
    """
    _check_options(camera, topic, parts, wheel_radius_m)
    check_correction(side_camera_correction_rad)
    bags = _bags(source)
    if not bags:
        raise DataError(
            f"{source}: no ROS1 bag found; expected a .bag file, or a folder with some in it or one level down"
        )
    found = []
    for each in chosen(camera):
        recordings = [_read(path, each, topic, wheel_radius_m) for path in bags]
        recordings.sort(key=lambda recording: (recording.start_ns, recording.path.name))
        groups = _joined(recordings) if parts == "joined" else [[one] for one in recordings]
        found += [_drive(group, side_camera_correction_rad, reduced) for group in groups]
    return found


def _check_options(camera: str, topic: str | None, parts: str, wheel_radius_m: float) -> None:
    if camera == "all" and topic is not None:
        raise DataError(f"topic {quoted(topic)} is one camera's; leave topic out, or choose a camera")
    if parts not in ("separate", "joined"):
        raise DataError(f"parts is {parts!r}; choose separate or joined")
    if not 0.1 <= wheel_radius_m <= 1.0:
        raise DataError(f"wheel_radius_m is {wheel_radius_m}; expected 0.1 to 1.0 m")


def _bags(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source] if source.is_file() and is_bag(source) else []
    below = [entry for entry in visible(source) if entry.is_dir()]
    return _bags_in(source) or [path for folder in below for path in _bags_in(folder)]


def _bags_in(folder: Path) -> list[Path]:
    return [path for path in visible(folder) if path.suffix == ".bag" and path.is_file()]


@dataclass(frozen=True, kw_only=True)
class _Recording:
    """What the index pass found in one bag."""

    path: Path
    camera: str
    time_ns: Int64[np.ndarray, " T"]
    images: BagPart
    steering_wheel: Signal | None
    speed: Signal | None
    damaged: tuple[str, ...]
    provenance: Mapping[str, Any]

    @property
    def start_ns(self) -> int:
        return int(self.time_ns[0])


class _Track(NamedTuple):
    """One topic as read: stamps of the messages that could be read, and the values of each."""

    messages: Messages
    """Those that could be read."""
    time_ns: Int64[np.ndarray, " N"]
    values: Float64[np.ndarray, "N K"]
    damaged: tuple[str, ...]
    unstamped: int
    """How many took the recorder's time."""


class _Wanted(NamedTuple):
    """What to take from a topic's messages: with no fields, only their time."""

    topic: str
    layout: Layout
    fields: tuple[str, ...]


def _read(path: Path, camera: str, topic: str | None, wheel_radius_m: float) -> _Recording:
    with open_index(path) as index:
        image_topic = topic or _camera_topic(path, index.topics, camera)
        wanted = list(_wanted(path, index.topics, image_topic))
        tables = [index.messages(want.topic) for want in wanted]
        topics = index.topics
    with MessageReader(path) as reader:
        tracks = _tracks(reader, wanted, tables)
        compression = sorted(reader.compressions)
    frames = tracks[image_topic]
    if not len(frames.time_ns):
        first = f"; the first: {frames.damaged[0]}" if frames.damaged else ""
        raise DataError(f"{path.name}: no message of {image_topic} can be read{first}; copy the bag again")
    steering = _signal(tracks.get(STEERING_TOPIC), column=0, most=MOST_STEERING_RAD)
    speed, speed_from = _speed(tracks, wheel_radius_m)
    return _Recording(
        path=path.resolve(),
        camera=_camera_name(image_topic),
        time_ns=frames.time_ns,
        images=BagPart(path=path.resolve(), layout=wanted[0].layout, messages=frames.messages),
        steering_wheel=steering,
        speed=speed,
        damaged=tuple(name for track in tracks.values() for name in track.damaged),
        provenance={
            "bag": path.name,
            "bytes": path.stat().st_size,
            "compression": compression,
            "image_topic": image_topic,
            "frames_timed_by_recorder": frames.unstamped,
            "speed_from": speed_from,
            **{name: _counts(topics, kind) for name, kind in _NOTED.items() if _counts(topics, kind)},
        },
    )


_NOTED = {"gps_messages": "sensor_msgs/NavSatFix", "imu_messages": "sensor_msgs/Imu"}


def _counts(topics: Mapping[str, Topic], message_type: str) -> dict[str, int]:
    return {name: topic.count for name, topic in topics.items() if topic.message_type == message_type}


def _camera_topic(path: Path, topics: Mapping[str, Topic], camera: str) -> str:
    """The compressed topic where it has messages, else the raw one."""
    raw = f"/{camera}_camera/image_color"
    for name in (f"{raw}/compressed", raw):
        if name in topics and topics[name].count:
            return name
    message = f"{path.name}: has no messages of {raw} or {raw}/compressed; {_image_topics(topics)}"
    images = {
        name: topic.count for name, topic in topics.items() if topic.message_type in FIELDS and topic.count
    }
    if not images:
        raise DataError(message)
    raise SettingNeededError(message, reader_options={"topic": max(images, key=images.__getitem__)})


def _image_topics(topics: Mapping[str, Topic]) -> str:
    images = [f"{n} ({t.count})" for n, t in topics.items() if t.message_type in FIELDS and t.count]
    if images:
        return f"its image topics are {', '.join(images[:12])}: choose one with the option topic"
    return f"it has no image topic, only {', '.join(list(topics)[:12]) or 'none at all'}: choose another bag"


def _camera_name(topic: str) -> str:
    known = re.fullmatch(r"/(left|center|right)_camera/.*", topic)
    return known[1] if known else re.sub(r"[^A-Za-z0-9]+", "-", topic).strip("-")


def _wanted(path: Path, topics: Mapping[str, Topic], image_topic: str) -> Iterator[_Wanted]:
    """The camera first, then steering, then the wheels where the steering report has no speed."""
    camera = topics.get(image_topic)
    if camera is None or not camera.count:
        raise DataError(f"{path.name}: has no messages of {image_topic}; {_image_topics(topics)}")
    if camera.message_type not in FIELDS:
        raise DataError(
            f"{path.name}: {image_topic} carries {camera.message_type}, expected {' or '.join(FIELDS)}; "
            f"{_image_topics(topics)}"
        )
    yield _Wanted(image_topic, _layout(path, camera, FIELDS[camera.message_type]), ())
    has_speed = False
    steering = _report(path, topics, STEERING_TOPIC)
    if steering is not None:
        has_speed = _layout(path, steering, ()).has("speed")
        fields = ("steering_wheel_angle", "speed") if has_speed else ("steering_wheel_angle",)
        yield _Wanted(STEERING_TOPIC, _layout(path, steering, fields), fields)
    wheels = None if has_speed else _report(path, topics, WHEEL_SPEED_TOPIC)
    if wheels is not None:
        yield _Wanted(WHEEL_SPEED_TOPIC, _layout(path, wheels, _WHEELS), _WHEELS)


def _report(path: Path, topics: Mapping[str, Topic], name: str) -> Topic | None:
    """A report of the car, where the bag has any."""
    topic = topics.get(name)
    if topic is None or not topic.count:
        return None
    if not _REPORT_TYPES.fullmatch(topic.message_type):
        raise DataError(
            f"{path.name}: {name} carries {topic.message_type}, expected a report of dbw_mkz_msgs in rad; "
            "leave the topic out of the bag to read it unlabelled"
        )
    return topic


def _layout(path: Path, topic: Topic, fields: tuple[str, ...]) -> Layout:
    try:
        layout = Layout.parse(topic.message_type, topic.definition)
        layout.require(fields)
    except DataError as fault:
        raise DataError(f"{path.name}: {fault}") from None
    return layout


def _tracks(reader: MessageReader, wanted: list[_Wanted], tables: list[Messages]) -> dict[str, _Track]:
    """One pass over the chunks in the order of the file, so that each is inflated once."""
    topic = np.concatenate([np.full(len(table), number) for number, table in enumerate(tables)])
    row = np.concatenate([np.arange(len(table)) for table in tables])
    chunk = np.concatenate([table.chunk for table in tables])
    offset = np.concatenate([table.offset for table in tables])
    times = [np.zeros(len(table), dtype=np.int64) for table in tables]
    values = [np.full((len(t), len(w.fields)), np.nan) for t, w in zip(tables, wanted, strict=True)]
    damaged: list[dict[int, str]] = [{} for _ in tables]
    for position in np.lexsort((offset, chunk)).tolist():
        number, at = int(topic[position]), int(row[position])
        try:
            times[number][at], values[number][at] = _sample(reader, wanted[number], tables[number], at)
        except DataError as fault:
            damaged[number][at] = f"{wanted[number].topic}: {fault}"
    return {
        want.topic: _track(tables[number], times[number], values[number], damaged[number])
        for number, want in enumerate(wanted)
    }


def _sample(reader: MessageReader, want: _Wanted, table: Messages, at: int) -> tuple[int, list[float]]:
    """(stamp in ns, 0 where the header has none; the fields) of one message."""
    is_stamped = want.layout.starts_with_header()
    if not want.fields:
        data = reader.read(table, at, most=_STAMP)
        seconds, nanoseconds = np.frombuffer(data.ljust(_STAMP, b"\0"), "<u4")[1:].tolist()
        return (seconds * 10**9 + nanoseconds if is_stamped else 0), []
    names = (*want.fields, "header.stamp") if is_stamped else want.fields
    message = want.layout.read(reader.read(table, at), names)
    return message.get("header.stamp", 0), [float(message[name]) for name in want.fields]


def _track(table: Messages, time_ns: np.ndarray, values: np.ndarray, damaged: Mapping[int, str]) -> _Track:
    good = np.ones(len(table), dtype=bool)
    good[list(damaged)] = False
    unstamped = good & (time_ns == 0)
    stamps = np.where(time_ns == 0, table.receive_ns, time_ns)
    names = tuple(damaged[at] for at in sorted(damaged))
    return _Track(table.take(good), stamps[good], values[good], names, int(unstamped.sum()))


def _signal(track: _Track | None, *, column: int, most: float) -> Signal | None:
    if track is None:
        return None
    return Signal(time_ns=track.time_ns, value=credible(track.values[:, column], most=most))


def _speed(tracks: Mapping[str, _Track], wheel_radius_m: float) -> tuple[Signal | None, str | None]:
    """(m/s, the topic it is from). Wheels turn at rad/s; their mean stands for the car."""
    steering, wheels = tracks.get(STEERING_TOPIC), tracks.get(WHEEL_SPEED_TOPIC)
    if steering is not None and steering.values.shape[1] == 2:
        return _signal(steering, column=1, most=MOST_SPEED_MPS), STEERING_TOPIC
    if wheels is None:
        return None, None
    speed = wheels.values.mean(axis=1) * wheel_radius_m
    signal = Signal(time_ns=wheels.time_ns, value=credible(speed, most=MOST_SPEED_MPS))
    return signal, WHEEL_SPEED_TOPIC


def _joined(recordings: list[_Recording]) -> list[list[_Recording]]:
    """Groups of recordings that follow one another."""
    groups = [recordings[:1]]
    for before, after in pairwise(recordings):
        if 0 <= after.start_ns - int(before.time_ns[-1]) <= JOIN_GAP_NS:
            groups[-1].append(after)
        else:
            groups.append([after])
    return groups


def _drive(group: list[_Recording], correction_rad: float, reduced: Reduction) -> Drive:
    """One drive of one recording or of consecutive ones."""
    first = group[0]
    name = drive_name(first.path)
    offset = correction_of(first.camera, correction_rad)
    damaged = tuple(name for one in group for name in one.damaged)
    drive = Drive(
        name=name_of(name, first.camera),
        source=NAME,
        camera=first.camera,
        recording=name,
        vehicle=VEHICLES["lincoln-mkz"],
        time_ns=np.concatenate([one.time_ns for one in group]),
        images=BagImages(parts=tuple(one.images for one in group), reduced=reduced),
        steering_wheel=_concatenated([one.steering_wheel for one in group]),
        speed=_concatenated([one.speed for one in group]),
        left_out={"damaged_message": damaged} if damaged else {},
        provenance={"bags": [dict(one.provenance) for one in group], "side_camera_correction_rad": offset},
    )
    return shifted(drive, offset)


def _concatenated(signals: list[Signal | None]) -> Signal | None:
    known = [signal for signal in signals if signal is not None]
    if not known:
        return None
    return Signal(
        time_ns=np.concatenate([signal.time_ns for signal in known]),
        value=np.concatenate([signal.value for signal in known]),
    )
