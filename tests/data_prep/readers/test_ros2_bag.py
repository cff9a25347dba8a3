"""ROS 2 bags in SQLite and MCAP, written by `rosbags` as ROS writes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from data_prep.errors import DataError
from data_prep.geometry import decode_image
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import read, recognise
from data_prep.shards.parquet import read_index
from tests.data_prep.recordings import jpeg, scene

START_NS = 1_700_000_000_000_000_000
STEERING_MSG = "std_msgs/Header header\nfloat32 angle\nfloat32[2] pair\nstring note"
STEERING_TYPE = "car_msgs/msg/Steering"
PLUGINS = {"sqlite": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}


def drives(source, **options):
    return read("ros2-bag", source, options)


def bag(
    folder,
    frames=30,
    *,
    plugin="mcap",
    raw=False,
    stamped=True,
    damaged=(),
    second_camera=False,
    compression=None,
):
    """A camera at 20 Hz, logged 5 ms late, and steering at 50 Hz that is sin(t)."""
    types = get_typestore(Stores.ROS2_JAZZY)
    types.register(get_types_from_msg(STEERING_MSG, STEERING_TYPE))
    kinds = types.types
    time, header = kinds["builtin_interfaces/msg/Time"], kinds["std_msgs/msg/Header"]

    def head(stamp_ns):
        stamp_ns = stamp_ns if stamped else 0
        return header(stamp=time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9), frame_id="car")

    def image(number, stamp_ns):
        if raw:
            pixels = np.pad(scene(number)[..., ::-1].reshape(48, -1), ((0, 0), (0, 8)))
            return kinds["sensor_msgs/msg/Image"](
                header=head(stamp_ns), height=48, width=64, encoding="bgr8", is_bigendian=0,
                step=64 * 3 + 8, data=pixels.reshape(-1),
            )  # fmt: skip
        data = b"\xff\xd8broken" if number in damaged else jpeg(number)
        return kinds["sensor_msgs/msg/CompressedImage"](
            header=head(stamp_ns), format="jpeg", data=np.frombuffer(data, np.uint8)
        )

    bag_writer = Writer(folder, version=9, storage_plugin=PLUGINS[plugin])
    if compression is not None:
        bag_writer.set_compression(compression, CompressionFormat.ZSTD)
    with bag_writer as writer:
        kind = "sensor_msgs/msg/Image" if raw else "sensor_msgs/msg/CompressedImage"
        topics = ["/front/image", "/rear/image"] if second_camera else ["/front/image"]
        cameras = [writer.add_connection(topic, kind, typestore=types) for topic in topics]
        wheel = writer.add_connection("/steering", STEERING_TYPE, typestore=types)
        speed = writer.add_connection("/speed", "std_msgs/msg/Float32", typestore=types)
        events = []
        for number in range(frames):
            stamp_ns = START_NS + number * 50_000_000
            message = types.serialize_cdr(image(number, stamp_ns), kind)
            events += [(stamp_ns + 5_000_000, camera, message) for camera in cameras]
        for number in range(frames * 5 // 2 + 1):
            stamp_ns = START_NS + number * 20_000_000
            angle = math.sin(number * 0.02)
            message = kinds[STEERING_TYPE](
                header=head(stamp_ns), angle=angle, pair=np.array([angle, -angle], np.float32), note="x"
            )
            events.append((stamp_ns + 1_000_000, wheel, types.serialize_cdr(message, STEERING_TYPE)))
            km_h = kinds["std_msgs/msg/Float32"](data=36.0)
            events.append((stamp_ns, speed, types.serialize_cdr(km_h, "std_msgs/msg/Float32")))
        for stamp_ns, connection, data in sorted(events, key=lambda event: event[0]):
            writer.write(connection, stamp_ns, data)
    return folder


OPTIONS = {"steering": "/steering:angle", "speed": "/speed:data", "speed_unit": "km/h"}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_images_stamps_and_controls_of_a_bag(plugin, tmp_path):
    source = bag(tmp_path / "bag", plugin=plugin)
    assert recognise(source) == "ros2-bag"
    (drive,) = drives(source, **OPTIONS)
    assert (drive.name, drive.camera, len(drive)) == ("bag", "/front/image", 30)
    assert drive.time_ns.tolist() == [START_NS + n * 50_000_000 for n in range(30)]
    np.testing.assert_allclose(drive.steering_wheel.value, np.sin(np.arange(76) * 0.02), atol=1e-6)
    assert drive.steering_wheel.time_ns[1] - drive.steering_wheel.time_ns[0] == 20_000_000
    np.testing.assert_allclose(drive.speed.value, 10.0)
    for number, image in zip(range(7, 12), drive.images.read(7, 12), strict=True):
        assert np.array_equal(image, decode_image(jpeg(number), name="x"))


def test_a_file_alone_raw_images_and_bags_one_level_down(tmp_path):
    source = bag(tmp_path / "in" / "one", 5, raw=True)
    (file,) = source.glob("*.mcap")
    for path in (file, tmp_path / "in"):
        (drive,) = drives(path)
        assert drive.steering_wheel is None
        assert np.array_equal(next(drive.images.read(3, 4)), scene(3))


def test_shards_are_the_same_from_both_storages_and_every_cut(tmp_path):
    indexes = []
    for plugin, frames_per_shard in (("mcap", 2000), ("sqlite", 7)):
        config = PrepConfig(
            reader="ros2-bag",
            source=bag(tmp_path / plugin, plugin=plugin, damaged=(9,)),
            reader_options=OPTIONS,
            split="train",
            smoothing=1.0,
            frames_per_shard=frames_per_shard,
        )
        manifest = prepare(config, tmp_path / f"out-{plugin}")
        assert manifest.quality[plugin]["dropped"] == {"undecodable_image": 1}
        indexes.append(read_index(tmp_path / f"out-{plugin}"))
    np.testing.assert_array_equal(indexes[0]["frame"], indexes[1]["frame"])
    np.testing.assert_array_equal(indexes[0]["inverse_turning_radius"], indexes[1]["inverse_turning_radius"])
    np.testing.assert_allclose(
        indexes[0]["steering_wheel_rad"], np.sin(indexes[0]["frame"] * 0.05), atol=2e-4
    )


def test_messages_without_a_stamp_have_the_recorders_time(tmp_path):
    (drive,) = drives(bag(tmp_path / "bag", 5, stamped=False), **OPTIONS)
    assert drive.time_ns.tolist() == [START_NS + n * 50_000_000 + 5_000_000 for n in range(5)]
    assert drive.provenance["frames_timed_by_recorder"] == 5


def test_fields_of_arrays_and_units(tmp_path):
    source = bag(tmp_path / "bag", 5)
    (drive,) = drives(source, steering="/steering:pair.1", steering_of="road", positive="right")
    np.testing.assert_allclose(drive.steering_wheel.value, 14.8 * np.sin(np.arange(13) * 0.02), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image": "/side"},
            r"has no topic '/side'; there are '/front/image, /rear/image, /speed, /steering'",
        ),
        ({}, r"2 topics hold images \('/front/image, /rear/image'\); add --option image=TOPIC"),
        ({"image": "/speed"}, "/speed holds std_msgs/msg/Float32, expected"),
        ({"image": "/front/image", "steering": "/steering"}, "expected TOPIC:FIELD as"),
        ({"image": "/front/image", "steering": "/wheel:angle"}, "has no topic '/wheel'"),
        (
            {"image": "/front/image", "steering": "/steering:x"},
            "no field 'x'; there are header, angle, pair, note",
        ),
        ({"image": "/front/image", "steering": "/steering:note"}, "'note' is no number"),
        ({"image": "/front/image", "steering": "/steering:pair"}, "'pair' is no number"),
        ({"image": "/front/image", "steering": "/steering:pair.7"}, "no field 'pair.7'"),
    ],
)
def test_topics_and_fields_that_are_not_there_are_named(options, message, tmp_path):
    source = bag(tmp_path / "bag", 3, second_camera=True)
    with pytest.raises(DataError, match=message) as error:
        drives(source, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_bag_is_one_line_or_loses_frames_and_never_a_traceback(plugin, seed, tmp_path):
    source = bag(tmp_path / "bag", 6, plugin=plugin)
    rng = np.random.default_rng(seed)
    files = sorted(source.iterdir())
    file = files[seed % len(files)]
    data = bytearray(file.read_bytes())
    if seed % 3 == 0:
        data = data[: int(len(data) * rng.uniform(0.05, 0.95))]
    for place in rng.integers(0, len(data), 40):
        data[place] = rng.integers(0, 256)
    file.write_bytes(data)
    faults = []
    try:
        (drive,) = drives(source, **OPTIONS)
        list(drive.images.read(0, len(drive)))
    except DataError as error:
        faults.append(str(error))
    assert not any("\n" in fault for fault in faults)


@pytest.mark.parametrize(("plugin", "mode"), [("sqlite", "MESSAGE"), ("sqlite", "FILE"), ("mcap", "STORAGE")])
def test_compressed_bags(plugin, mode, tmp_path):
    source = bag(tmp_path / "bag", 6, plugin=plugin, compression=CompressionMode[mode])
    (drive,) = drives(source, **OPTIONS)
    assert len(list(drive.images.read(2, 6))) == 4


def test_a_folder_without_a_bag(tmp_path):
    with pytest.raises(DataError, match=r"no ROS 2 bag found; expected a folder with metadata.yaml"):
        drives(tmp_path)
