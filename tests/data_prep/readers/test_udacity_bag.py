"""Bags written with the true message definitions must come back exactly, and damaged ones as one line."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.errors import DataError
from data_prep.readers import recognise
from data_prep.readers.udacity_bag import WHEEL_RADIUS_M, drives, recognises
from tests.data_prep.readers.bag_writer import (
    COMPRESSIONS,
    SECOND,
    START_NS,
    STEERING_WITHOUT_SPEED,
    Message,
    camera,
    generated_jpegs,
    raw_camera,
    short_drive,
    steering,
    typestore,
    wheels,
    write_bag,
)

FRAME_NS = SECOND // 20


def rgb(jpeg: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_real_frames_come_back_pixel_for_pixel(shared_data, tmp_path, compression):
    files = sorted((shared_data / "udacity_ch2_001_640x480" / "center").glob("*.jpg"))[:12]
    messages = [camera(int(f.stem) + 7_000_000, f.read_bytes(), stamp_ns=int(f.stem)) for f in files]
    [drive] = drives(write_bag(tmp_path / "HMB_3.bag", messages, compression=compression))
    assert drive.time_ns.tolist() == [int(file.stem) for file in files]
    for file, image in zip(files, drive.images.read(0, 12), strict=True):
        np.testing.assert_array_equal(image, cv2.imread(str(file))[:, :, ::-1])


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("chunk_bytes", [1, 20_000])
def test_every_range_reads_its_own_frames(tmp_path, compression, chunk_bytes):
    jpegs = generated_jpegs(9)
    path = write_bag(tmp_path / "a.bag", short_drive(jpegs), compression=compression, chunk_bytes=chunk_bytes)
    [drive] = drives(path)
    source = pickle.loads(pickle.dumps(drive.images))
    for start, stop in [(0, 9), (3, 4), (7, 9), (4, 4), (8, 20)]:
        images = list(source.read(start, stop))
        assert len(images) == len(jpegs[start:stop])
        for image, jpeg in zip(images, jpegs[start:stop], strict=True):
            np.testing.assert_array_equal(image, rgb(jpeg))


def test_steering_and_speed_keep_their_own_times(tmp_path):
    [drive] = drives(write_bag(tmp_path / "a.bag", short_drive(generated_jpegs(4)), compression="lz4"))
    step = np.arange(-2, 14)
    assert drive.steering_wheel.time_ns.tolist() == (START_NS + 20_000_000 * step).tolist()
    np.testing.assert_array_equal(drive.steering_wheel.value, np.float32(0.01 * step))
    np.testing.assert_array_equal(drive.speed.value, np.float32(5.0 + 0.1 * step))
    assert drive.vehicle.name == "lincoln-mkz"
    assert (drive.name, drive.camera, drive.left_out) == ("a", "center", {})


def test_header_time_wins_and_the_recorder_stands_in_where_it_is_zero(tmp_path):
    jpegs = generated_jpegs(3)
    messages = [
        camera(START_NS + 100, jpegs[0], stamp_ns=START_NS + 1),
        camera(START_NS + 200, jpegs[1], stamp_ns=0),
        steering(START_NS + 250, 0.1, stamp_ns=0),
        camera(START_NS + 300, jpegs[2], stamp_ns=START_NS + 3),
    ]
    [drive] = drives(write_bag(tmp_path / "a.bag", messages))
    assert (drive.time_ns - START_NS).tolist() == [1, 200, 3]
    assert (drive.steering_wheel.time_ns - START_NS).tolist() == [250]
    assert drive.provenance["bags"][0]["frames_timed_by_recorder"] == 1


def test_a_bag_without_steering_is_unlabelled(tmp_path):
    [drive] = drives(write_bag(tmp_path / "HMB_3.bag", [camera(START_NS, generated_jpegs(1)[0])]))
    assert drive.steering_wheel is None
    assert drive.speed is None


def test_speed_is_from_the_wheels_where_the_report_has_none(tmp_path):
    messages = [
        camera(START_NS, generated_jpegs(1)[0]),
        steering(START_NS + 1, 0.25, speed=None),
        wheels(START_NS + 2, 10.0, 20.0, 30.0, 40.0),
    ]
    path = write_bag(tmp_path / "a.bag", messages, steering=STEERING_WITHOUT_SPEED)
    [drive] = drives(path)
    np.testing.assert_allclose(drive.speed.value, [25.0 * WHEEL_RADIUS_M])
    np.testing.assert_allclose(drives(path, wheel_radius_m=0.4)[0].speed.value, [10.0])
    assert drive.steering_wheel.value.tolist() == [0.25]
    with_speed = [messages[0], steering(START_NS + 1, 0.25, speed=7.0), messages[2]]
    [drive] = drives(write_bag(tmp_path / "b.bag", with_speed))
    assert drive.speed.value.tolist() == [7.0]


def test_the_definition_in_the_bag_decides_and_2016_stands_in(tmp_path):
    """A report with a field inserted before the angle is read by its own definition."""
    changed = STEERING_WITHOUT_SPEED.replace("# Steering Wheel\n", "float64 temperature\n")
    messages = [camera(START_NS, generated_jpegs(1)[0]), steering(START_NS, 0.5, speed=None)]
    messages[1].fields["temperature"] = 21.0
    [drive] = drives(write_bag(tmp_path / "a.bag", messages, steering=changed))
    assert drive.steering_wheel.value.tolist() == [0.5]
    stripped = {message.topic: "" for message in messages}
    messages = [messages[0], steering(START_NS, 0.5, speed=3.0)]
    [drive] = drives(write_bag(tmp_path / "b.bag", messages, definitions=stripped))
    assert (drive.steering_wheel.value.tolist(), drive.speed.value.tolist()) == ([0.5], [3.0])


def test_values_that_no_car_has_are_unknown(tmp_path):
    messages = [steering(START_NS + k, angle, speed=-angle) for k, angle in enumerate((1.0, 1e30, np.nan))]
    [drive] = drives(write_bag(tmp_path / "a.bag", [camera(START_NS, generated_jpegs(1)[0]), *messages]))
    np.testing.assert_array_equal(drive.steering_wheel.value, [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(drive.speed.value, [-1.0, np.nan, np.nan])


def test_side_cameras_and_their_correction(tmp_path):
    jpegs = generated_jpegs(3)
    sides = ("left", "center", "right")
    messages = [
        camera(START_NS, jpeg, topic=f"/{side}_camera/image_color/compressed")
        for side, jpeg in zip(sides, jpegs, strict=True)
    ]
    path = write_bag(tmp_path / "a.bag", [*messages, steering(START_NS, 0.5)])
    for side, jpeg, sign in zip(sides, jpegs, (-1, 0, 1), strict=True):
        [drive] = drives(path, camera=side, side_camera_correction_rad=0.25)
        np.testing.assert_array_equal(next(drive.images.read(0, 1)), rgb(jpeg))
        assert drive.steering_wheel.value.tolist() == [0.5 + sign * 0.25]
        assert drive.name == ("a" if side == "center" else f"a-{side}")
        assert drives(path, camera=side)[0].steering_wheel.value.tolist() == [0.5]
    found = drives(path, camera="all", side_camera_correction_rad=0.25)
    assert [(d.camera, d.recording, d.steering_wheel.value.tolist()) for d in found] == [
        ("center", found[0].name, [0.5]),
        ("left", found[0].name, [0.25]),
        ("right", found[0].name, [0.75]),
    ]


def test_another_topic_by_name_and_the_error_lists_what_there_is(shared_data):
    path = shared_data / "ros1_bag_tiny" / "duckietown_test.bag"
    with pytest.raises(DataError, match=r"image topics are /gym/observations \(1\)"):
        drives(path)
    [drive] = drives(path, topic="/gym/observations")
    assert next(drive.images.read(0, 1)).shape == (124, 123, 3)
    assert drive.camera == "gym-observations"
    with pytest.raises(DataError, match="no messages of /nothing"):
        drives(path, topic="/nothing")


ENCODINGS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("padding", [0, 5])
def test_raw_images_with_padded_rows(tmp_path, encoding, padding):
    channels, generator = ENCODINGS[encoding], np.random.default_rng(3)
    pixels = generator.integers(0, 256, (6, 7, channels), dtype=np.uint8)
    rows = np.pad(pixels.reshape(6, -1), ((0, 0), (0, padding)), constant_values=99)
    message = raw_camera(START_NS, rows, width=7, encoding=encoding, step=rows.shape[1])
    [drive] = drives(write_bag(tmp_path / "a.bag", [message], compression="bz2"))
    order = {"b": [2, 1, 0], "r": [0, 1, 2], "m": [0, 0, 0]}[encoding[0]]
    np.testing.assert_array_equal(next(drive.images.read(0, 1)), pixels[:, :, order])


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_mosaics_are_filled_in_with_the_right_colours(tmp_path, pattern):
    """One colour everywhere: each photosite of the 2x2 pattern sees its own part of it."""
    colour = {"r": 200, "g": 120, "b": 30}
    tile = np.array([colour[site] for site in pattern], dtype=np.uint8).reshape(2, 2)
    rows = np.tile(tile, (4, 5))
    message = raw_camera(START_NS, rows, width=10, encoding=f"bayer_{pattern}8", step=10)
    [drive] = drives(write_bag(tmp_path / "a.bag", [message]))
    np.testing.assert_array_equal(next(drive.images.read(0, 1)), np.full((8, 10, 3), [200, 120, 30]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "bayer_rggb16"}, "encoding 'bayer_rggb16', expected one of rgb8"),
        ({"step": 5}, "the bag is damaged"),
        ({"height": 900}, "has 42 bytes, expected 6300"),
        ({"height": 0}, "expected 1 to"),
        ({"height": 2**31, "width": 2**31}, "expected 1 to"),
    ],
)
def test_raw_images_that_contradict_themselves(tmp_path, change, message):
    image = raw_camera(START_NS, np.zeros((6, 7), np.uint8), width=7, encoding="mono8", step=7)
    image.fields.update(change)
    [drive] = drives(write_bag(tmp_path / "a.bag", [image]))
    with pytest.raises(DataError, match=message):
        next(drive.images.read(0, 1))


def test_bags_of_a_folder_are_drives_in_time_or_joined(tmp_path):
    jpegs = generated_jpegs(6)
    starts = {"z": START_NS, "b": START_NS + 3 * FRAME_NS, "a": START_NS + 3600 * SECOND}
    for number, (name, start) in enumerate(starts.items()):
        messages = short_drive(jpegs[2 * number : 2 * number + 2], start_ns=start)
        write_bag(tmp_path / f"{name}.bag", messages, compression="lz4")
    separate = drives(tmp_path)
    assert [drive.name for drive in separate] == ["z", "b", "a"]
    joined = drives(tmp_path, parts="joined")
    assert [drive.name for drive in joined] == ["z", "a"]
    assert joined[0].time_ns.tolist() == [START_NS + FRAME_NS * k for k in (0, 1, 3, 4)]
    for image, jpeg in zip(joined[0].images.read(1, 4), jpegs[1:4], strict=True):
        np.testing.assert_array_equal(image, rgb(jpeg))
    sizes = [len(drive.steering_wheel.value) for drive in separate]
    assert len(joined[0].steering_wheel.value) == sizes[0] + sizes[1]
    assert [bag["bag"] for bag in joined[0].provenance["bags"]] == ["z.bag", "b.bag"]


def test_recognised_as_bag(tmp_path):
    path = write_bag(tmp_path / "a.bag", short_drive(generated_jpegs(1)))
    renamed = tmp_path / "folder" / "recording"
    renamed.parent.mkdir()
    renamed.write_bytes(path.read_bytes())
    (tmp_path / "text.txt").write_text("#ROS")
    assert recognise(path) == recognise(tmp_path) == recognise(renamed) == "udacity-bag"
    assert not recognises(tmp_path / "text.txt")
    assert not recognises(renamed.parent)
    assert not recognises(tmp_path / "none")


def test_gps_and_imu_are_noted(tmp_path):
    frame = camera(START_NS, generated_jpegs(1)[0])
    path = write_bag(tmp_path / "a.bag", [frame])
    assert "gps_messages" not in drives(path)[0].provenance["bags"][0]
    types = typestore().types
    status = types["sensor_msgs/msg/NavSatStatus"](status=0, service=1)
    fix = {
        "status": status,
        "latitude": 37.4,
        "longitude": -122.1,
        "altitude": 0.0,
        "position_covariance": np.zeros(9),
        "position_covariance_type": 0,
    }
    gps = Message(topic="/vehicle/gps/fix", kind="sensor_msgs/msg/NavSatFix", receive_ns=START_NS, fields=fix)
    [drive] = drives(write_bag(tmp_path / "b.bag", [frame, gps, gps]))
    assert drive.provenance["bags"][0]["gps_messages"] == {"/vehicle/gps/fix": 2}


def test_reading_the_index_holds_no_images(tmp_path):
    """400 images of 60 kB lie in the bag; the index pass may hold one chunk of 0.75 MiB at a time."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 160, 240, 3), dtype=np.uint8)
    jpegs = [cv2.imencode(".jpg", image)[1].tobytes() for image in noise]
    messages = [camera(START_NS + FRAME_NS * k, jpegs[k % 20]) for k in range(400)]
    for compression in ("none", "lz4"):
        path = write_bag(tmp_path / f"{compression}.bag", messages, compression=compression)
        assert path.stat().st_size > 16 * 2**20
        drives(path)  # imports and caches are not what is measured
        tracemalloc.start()
        [drive] = drives(path)
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(drive) == 400
        assert held < 2**18
        assert peak < 3 * 2**20
        assert len(pickle.dumps(drive)) < 2**16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"camera": "rear"}, "choose center, left, right or all"),
        ({"parts": "all"}, "choose separate or joined"),
        ({"side_camera_correction_rad": float("nan")}, "below pi"),
        ({"wheel_radius_m": 13.0}, "expected 0.1 to 1.0 m"),
        ({"camera": "left"}, "no messages of /left_camera/image_color or"),
        ({"topic": "/vehicle/steering_report"}, "carries dbw_mkz_msgs/SteeringReport, expected sensor_msgs"),
    ],
)
def test_options_that_cannot_be_met(tmp_path, options, message):
    path = write_bag(tmp_path / "a.bag", short_drive(generated_jpegs(1)))
    with pytest.raises(DataError, match=message):
        drives(path, **options)


def test_reports_of_another_package_may_be_in_degrees(tmp_path):
    path = write_bag(tmp_path / "a.bag", short_drive(generated_jpegs(1)))
    path.write_bytes(path.read_bytes().replace(b"type=dbw_mkz_msgs", b"type=dsd_mkz_msgs"))
    with pytest.raises(DataError, match="carries dsd_mkz_msgs/SteeringReport, expected a report of dbw"):
        drives(path)


def test_one_damaged_chunk_costs_its_messages_only(tmp_path):
    jpegs = generated_jpegs(9)
    messages = short_drive(jpegs)
    path = write_bag(tmp_path / "a.bag", messages, compression="bz2", chunk_bytes=1)
    data = bytearray(path.read_bytes())
    starts = [at for at in range(len(data) - 4) if data[at : at + 4] == b"BZh9"]
    hit = next(k for k, message in enumerate(messages) if message.topic.startswith("/center"))
    data[starts[hit] + 20] ^= 0xFF
    path.write_bytes(data)
    [drive] = drives(path)
    assert len(drive) == 8
    [named] = drive.left_out["damaged_message"]
    assert "damaged bz2 chunk" in named
    np.testing.assert_array_equal(next(drive.images.read(0, 1)), rgb(jpegs[1]))


def test_everything_that_is_no_bag_is_one_line(tmp_path):
    whole = write_bag(tmp_path / "whole.bag", short_drive(generated_jpegs(2))).read_bytes()
    index_pos = whole.index(b"index_pos=") + len(b"index_pos=")
    unindexed = whole[:index_pos] + bytes(8) + whole[index_pos + 8 :]
    damaged = {
        "empty": b"",
        "magic only": b"#ROSBAG V2.0\n",
        "version 1": b"#ROSBAG V1.1\n" + whole[13:],
        "not indexed": unindexed,
        "cut": whole[: len(whole) // 2],
        "noise": np.random.default_rng(0).bytes(3000),
    }
    for name, data in damaged.items():
        path = tmp_path / f"{name}.bag"
        path.write_bytes(data)
        folder = tmp_path / name
        folder.mkdir()
        path.rename(folder / "x.bag")
        with pytest.raises(DataError) as error:
            drives(folder)
        assert "\n" not in str(error.value)
        assert str(tmp_path) not in str(error.value)
    with pytest.raises(DataError, match="no ROS1 bag found"):
        drives(tmp_path / "nothing")
    empty = tmp_path / "a folder"
    empty.mkdir()
    with pytest.raises(DataError, match="no ROS1 bag found"):
        drives(empty)


def test_no_message_at_all(tmp_path):
    with pytest.raises(DataError, match="has no image topic, only none at all"):
        drives(write_bag(tmp_path / "a.bag", []))


def chunk_size_field(data: bytes) -> int:
    """Where the first chunk's header claims its inflated size."""
    return data.index(b"size=", data.index(b"compression=")) + len(b"size=")


@pytest.mark.parametrize("compression", ["bz2", "lz4"])
def test_a_chunk_that_claims_gigabytes_is_refused_before_it_is_inflated(tmp_path, compression):
    path = write_bag(tmp_path / "a.bag", [camera(START_NS, generated_jpegs(1)[0])], compression=compression)
    data = bytearray(path.read_bytes())
    at = chunk_size_field(data)
    data[at : at + 4] = (3 * 2**30).to_bytes(4, "little")
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(DataError, match="3,221,225,472 bytes, over the 268,435,456"):
        drives(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("compression", ["bz2", "lz4"])
def test_a_chunk_that_inflates_to_more_than_it_claims_is_stopped(tmp_path, compression):
    """A megabyte-long image of zeros packs into a few bytes; its header then claims four kilobytes."""
    path = write_bag(tmp_path / "a.bag", [camera(START_NS, bytes(16 * 2**20))], compression=compression)
    data = bytearray(path.read_bytes())
    assert len(data) < 2**20
    at = chunk_size_field(data)
    data[at : at + 4] = (4096).to_bytes(4, "little")
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(DataError, match="does not inflate to its 4,096 bytes"):
        drives(path)
    assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    tracemalloc.stop()


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Cuts, flipped bits, overwritten lengths and doubled pieces, each at a seeded position."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        at = int(generator.integers(0, len(data)))
        if number % 4 == 0:
            yield data[:at]
        elif number % 4 == 1:
            yield data[:at] + bytes([data[at] ^ (1 << int(generator.integers(8)))]) + data[at + 1 :]
        elif number % 4 == 2:
            yield data[:at] + generator.bytes(4) + data[at + 4 :]
        else:
            yield data[:at] + data[max(at - 64, 0) : at] + data[at:]


def read_or_refused(path: Path) -> tuple[list[np.ndarray], list[str]]:
    """(images, refusals): any other exception than DataError fails the test."""
    images, refusals = [], []
    try:
        found = drives(path)
    except DataError as fault:
        return [], [str(fault)]
    for drive in found:
        for row in range(len(drive)):
            try:
                images += drive.images.read(row, row + 1)
            except DataError as fault:
                refusals.append(str(fault))
    return images, refusals


def check_mutated(folder: Path, compression: str, count: int, seed: int) -> None:
    jpegs = generated_jpegs(2, height=16, width=16)
    path = write_bag(folder / "a.bag", short_drive(jpegs), compression=compression, chunk_bytes=2000)
    whole = path.read_bytes()
    originals = {rgb(jpeg).tobytes() for jpeg in jpegs}
    outcomes = {"read": 0, "refused": 0}
    for mutated in mutations(whole, count, seed):
        path.write_bytes(mutated)
        images, refusals = read_or_refused(path)
        assert not any("\n" in refusal for refusal in refusals)
        outcomes["refused" if refusals else "read"] += 1
        if compression == "bz2":  # it alone has a checksum: what is read is what was written
            assert {image.tobytes() for image in images} <= originals
    assert min(outcomes.values()) > count // 20


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_mutated_bags_are_read_or_refused(tmp_path, compression):
    check_mutated(tmp_path, compression, count=200, seed=COMPRESSIONS.index(compression))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_many_mutated_bags_are_read_or_refused(tmp_path, compression):
    check_mutated(tmp_path, compression, count=5000, seed=100 + COMPRESSIONS.index(compression))


def test_chunks_that_share_their_index_are_refused(tmp_path):
    """Each of many small records could otherwise list the same long index again."""
    messages = [steering(START_NS + k, 0.0) for k in range(500)]
    path = write_bag(tmp_path / "a.bag", [camera(START_NS, generated_jpegs(1)[0]), *messages])
    data = path.read_bytes()
    record = data[data.rindex(b"op=\x06") - 8 :]
    copies = 1000
    at = data.index(b"chunk_count=") + len(b"chunk_count=")
    data = data[:at] + (1 + copies).to_bytes(4, "little") + data[at + 4 :] + record * copies
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(DataError, match="its chunks share index records"):
        drives(path)
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()
