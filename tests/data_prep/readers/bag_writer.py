"""Writes small ROS1 bags with the message definitions that Udacity's car recorded in 2016."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag1 import Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

SECOND = 10**9
START_NS = 1_479_425_440 * SECOND
STEERING_TYPE, WHEELS_TYPE = "dbw_mkz_msgs/msg/SteeringReport", "dbw_mkz_msgs/msg/WheelSpeedReport"
STEERING_2016 = """Header header

# Steering Wheel
float32 steering_wheel_angle      # rad
float32 steering_wheel_angle_cmd  # rad
float32 steering_wheel_torque     # Nm

# Vehicle Speed
float32 speed                     # m/s

# Status
bool enabled  # Enabled
bool override # Driver override
bool driver   # Driver activity

# Watchdog Counter
bool fault_wdc

# Faults
bool fault_bus1
bool fault_bus2
bool fault_calibration
bool fault_connector # This fault can be ignored
"""
STEERING_WITHOUT_SPEED = STEERING_2016.replace("float32 speed                     # m/s", "")
WHEELS_2016 = """Header header
float32 front_left  # rad/s
float32 front_right # rad/s
float32 rear_left   # rad/s
float32 rear_right  # rad/s
"""
COMPRESSIONS = ("none", "bz2", "lz4")


@cache
def typestore(steering: str = STEERING_2016) -> Typestore:
    store = get_typestore(Stores.ROS1_NOETIC)
    store.register(get_types_from_msg(steering, STEERING_TYPE))
    store.register(get_types_from_msg(WHEELS_2016, WHEELS_TYPE))
    return store


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message to write: its topic, type, the time it is received, and its fields without header."""

    topic: str
    kind: str
    receive_ns: int
    fields: dict[str, Any]
    stamp_ns: int | None = None
    """None: as received. 0 as a recorder without a clock writes it."""


def write_bag(
    path: Path,
    messages: Sequence[Message],
    *,
    compression: str = "none",
    steering: str = STEERING_2016,
    definitions: dict[str, str] | None = None,
    chunk_bytes: int = 768 * 1024,
) -> Path:
    """Writes the messages in their order.

    Args:
        path: the new bag.
        messages: what to write.
        compression: none, bz2 or lz4.
        steering: the definition of the steering report.
        definitions: what a connection says of a topic's type, in place of the true definition.
        chunk_bytes: when a chunk is closed.
    """
    store = typestore(steering)
    writer = Writer(path)
    if compression != "none":
        writer.set_compression(Writer.CompressionFormat[compression.upper()])
    writer.chunk_threshold = chunk_bytes
    with writer:
        connections = {}
        for message in messages:
            if message.topic not in connections:
                text, digest = store.generate_msgdef(message.kind)
                text = (definitions or {}).get(message.topic, text)
                connections[message.topic] = writer.add_connection(
                    message.topic, message.kind, msgdef=text, md5sum=digest
                )
            data = store.serialize_ros1(_instance(store, message), message.kind)
            writer.write(connections[message.topic], message.receive_ns, data)
    return path


def _instance(store: Typestore, message: Message) -> Any:
    types = store.types
    stamp = message.receive_ns if message.stamp_ns is None else message.stamp_ns
    time = types["builtin_interfaces/msg/Time"](sec=stamp // SECOND, nanosec=stamp % SECOND)
    header = types["std_msgs/msg/Header"](seq=0, stamp=time, frame_id="camera")
    if message.kind == STEERING_TYPE:
        flags = {n: False for n, _ in store.fielddefs[STEERING_TYPE][1] if n not in ("header", *_FLOATS)}
        floats = {n: 0.0 for n, _ in store.fielddefs[STEERING_TYPE][1] if n in _FLOATS}
        return types[message.kind](header=header, **(flags | floats | message.fields))
    if "header" in dict(store.fielddefs[message.kind][1]):
        return types[message.kind](header=header, **message.fields)
    return types[message.kind](**message.fields)


_FLOATS = ("steering_wheel_angle", "steering_wheel_angle_cmd", "steering_wheel_torque", "speed")


def camera(receive_ns: int, jpeg: bytes, *, topic: str = "", stamp_ns: int | None = None) -> Message:
    return Message(
        topic=topic or "/center_camera/image_color/compressed",
        kind="sensor_msgs/msg/CompressedImage",
        receive_ns=receive_ns,
        stamp_ns=stamp_ns,
        fields={"format": "jpeg", "data": np.frombuffer(jpeg, np.uint8)},
    )


def raw_camera(receive_ns: int, rows: np.ndarray, *, width: int, encoding: str, step: int) -> Message:
    """`rows` is uint8 [height, step]."""
    return Message(
        topic="/center_camera/image_color",
        kind="sensor_msgs/msg/Image",
        receive_ns=receive_ns,
        fields={
            "height": len(rows),
            "width": width,
            "encoding": encoding,
            "is_bigendian": 0,
            "step": step,
            "data": rows.reshape(-1),
        },
    )


def steering(receive_ns: int, angle: float, speed: float | None = 10.0, **where: Any) -> Message:
    fields = {"steering_wheel_angle": angle} | ({} if speed is None else {"speed": speed})
    return Message(
        topic="/vehicle/steering_report", kind=STEERING_TYPE, receive_ns=receive_ns, fields=fields, **where
    )


def wheels(receive_ns: int, *rad_per_s: float) -> Message:
    names = ("front_left", "front_right", "rear_left", "rear_right")
    return Message(
        topic="/vehicle/wheel_speed_report",
        kind=WHEELS_TYPE,
        receive_ns=receive_ns,
        fields=dict(zip(names, rad_per_s, strict=True)),
    )


def generated_jpegs(count: int, *, height: int = 48, width: int = 64, seed: int = 0) -> list[bytes]:
    """Different small colour images; smooth, so that JPEG keeps them."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        images.append(cv2.imencode(".jpg", image)[1].tobytes())
    return images


def short_drive(jpegs: Sequence[bytes], *, start_ns: int = START_NS) -> list[Message]:
    """Images at 20 Hz among steering at 50 Hz, in the order of their time."""
    frames = [camera(start_ns + 50_000_000 * k, jpeg) for k, jpeg in enumerate(jpegs)]
    reports = [
        steering(start_ns + 20_000_000 * k, angle=0.01 * k, speed=5.0 + 0.1 * k)
        for k in range(-2, 3 * len(jpegs) + 2)
    ]
    return sorted([*frames, *reports], key=lambda message: message.receive_ns)
