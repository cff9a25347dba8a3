"""The layout read from a definition text must agree with rosbags, which compiles the same text."""

from __future__ import annotations

import struct
import time

import numpy as np
import pytest

from data_prep.errors import DataError
from data_prep.readers.ros1_messages import FALLBACK_DEFINITIONS, Layout
from tests.data_prep.readers.bag_writer import STEERING_TYPE, WHEELS_TYPE, typestore

STANDARD = [
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CompressedImage",
    "sensor_msgs/msg/NavSatFix",
    "sensor_msgs/msg/Imu",
    "sensor_msgs/msg/CameraInfo",
    "sensor_msgs/msg/JointState",
    "nav_msgs/msg/Odometry",
    "diagnostic_msgs/msg/KeyValue",
]


def random_instance(store, kind: str, generator: np.random.Generator):
    """A message with every field drawn, lists of every length up to three."""
    types = store.types
    values = {}
    for name, (node, what) in store.fielddefs[kind][1]:
        values[name] = random_value(store, node, what, generator)
    return types[kind](**values)


def random_value(store, node, what, generator):
    if node == 2:  # a nested message
        return random_instance(store, what, generator)
    if node == 1:
        return random_scalar(what[0], generator)
    (inner_node, inner), length = what
    count = length if node == 3 else int(generator.integers(0, 4))
    values = [random_value(store, inner_node, inner, generator) for _ in range(count)]
    is_numeric = inner_node == 1 and inner[0] != "string"
    return np.array(values, dtype=inner[0]) if is_numeric else values


def random_scalar(kind: str, generator):
    if kind == "string":
        return "x" * int(generator.integers(0, 5))
    if kind == "bool":
        return bool(generator.integers(2))
    if kind.startswith("float"):
        return float(np.float32(generator.normal()))
    return int(generator.integers(0, 100))


def flat(store, message, prefix: str = "") -> dict:
    """What rosbags holds, with our names; times in ns."""
    values = {}
    for name, _ in store.fielddefs[message.__msgtype__][1]:
        value = getattr(message, name)
        if hasattr(value, "nanosec"):
            values[prefix + name] = value.sec * 10**9 + value.nanosec
        elif hasattr(value, "__msgtype__"):
            values |= flat(store, value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value
    return values


@pytest.mark.parametrize("kind", [*STANDARD, STEERING_TYPE, WHEELS_TYPE])
def test_every_field_agrees_with_rosbags(kind):
    store = typestore()
    layout = Layout.parse(kind.replace("/msg/", "/"), store.generate_msgdef(kind)[0])
    generator = np.random.default_rng(0)
    for _ in range(20):
        expected = random_instance(store, kind, generator)
        data = bytes(store.serialize_ros1(expected, kind))
        values = layout.read(data, [field.name for field in layout.fields])
        for name, value in flat(store, expected).items():
            if isinstance(value, np.ndarray):
                value = value.tobytes()
            if not isinstance(value, list):
                assert values[name] == value, name


@pytest.mark.parametrize("kind", FALLBACK_DEFINITIONS)
def test_fallbacks_are_the_true_definitions(kind):
    store = typestore()
    true = Layout.parse(kind, store.generate_msgdef(kind.replace("/", "/msg/"))[0])
    assert Layout.parse(kind, "  \n") == true


def test_constants_and_comments_take_no_bytes():
    text = (
        'uint8 LOW=1 # x=2\nstring NAME = "a # b"\n\n  uint8 level # one\nfloat32[2] pair\nstring[2] names\n'
    )
    layout = Layout.parse("a/B", text)
    data = b"\x07" + struct.pack("<ff", 1.0, 2.0) + b"\x01\0\0\0x" + b"\0\0\0\0"
    values = layout.read(data, ["level", "pair"])
    assert values == {"level": 7, "pair": struct.pack("<ff", 1.0, 2.0)}


def test_fields_behind_a_list_of_messages_are_refused():
    text = (
        "geometry_msgs/Point[] path\nfloat32 speed\n" + "=" * 80 + "\nMSG: geometry_msgs/Point\nfloat64 x\n"
    )
    with pytest.raises(DataError, match="expected also speed"):
        Layout.parse("a/B", text).require(["speed"])


SEPARATOR = "=" * 80 + "\n"
HOSTILE = {
    "itself": "Me me\n" + SEPARATOR + "MSG: a/Me\nMe me\n",
    "exponential": "L0 a\n"
    + "".join(f"{SEPARATOR}MSG: a/L{k}\n" + "".join(f"L{k + 1} f{n}\n" for n in range(100)) for k in range(8))
    + f"{SEPARATOR}MSG: a/L8\n",
    "too many": "".join(f"uint8 f{k}\n" for k in range(600)),
    "no field": "float32\n",
    "code": "float32 x; import os\n",
    "unknown": "Missing x\n",
    "long number": f"uint8[{'9' * 6000}] x\n",
    "blank": "",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_definitions_end_at_once(name):
    start = time.perf_counter()
    with pytest.raises(DataError) as error:
        Layout.parse("a/B", HOSTILE[name])
    assert time.perf_counter() - start < 1.0
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["string[999999999] x\n", "string[] x\n", "float64[] x\n", "uint8[99] x\n"])
def test_lists_longer_than_the_message_are_refused_before_they_are_walked(text):
    start = time.perf_counter()
    with pytest.raises(DataError, match="ends inside its field x"):
        Layout.parse("a/B", text).read(b"\xff\xff\xff\x7f\0\0\0\0", ["x"])
    assert time.perf_counter() - start < 1.0


def test_a_message_must_have_the_length_of_its_definition():
    layout = Layout.parse("a/B", "uint8 x\n")
    assert layout.read(b"\x01", ["x"]) == {"x": 1}
    with pytest.raises(DataError, match="of 2 bytes, its definition takes 1"):
        layout.read(b"\x01\x02", ["x"])
    with pytest.raises(DataError, match="ends inside"):
        layout.read(b"", ["x"])
