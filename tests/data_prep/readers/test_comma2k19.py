"""Segments with a real or generated video: times, signs, joins of routes, and what is missing."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.errors import DataError
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import recognise
from data_prep.readers.comma2k19 import drives, recognises

ROUTE = "b0c9d2329ad1606b|2018-08-02--08-34-47"


def write_array(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, values)


def write_video(path: Path, levels: list[int]) -> None:
    """A raw HEVC stream of even grey frames, one for each level."""
    with av.open(str(path), "w", format="hevc") as container:
        stream = container.add_stream("libx265", rate=20, options={"x265-params": "log-level=none:bframes=0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in levels:
            image = np.full((48, 64, 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_segment(
    folder: Path, *, start_s: float, frames: int = 4, level: int | None = None, speed: str = "speed"
) -> Path:
    """Frames at 20 Hz, controls at 100 Hz: both are the seconds since the start, in degrees and m/s."""
    write_array(folder / "global_pose" / "frame_times", start_s + np.arange(frames) / 20)
    samples = start_s + np.arange(5 * frames) / 100
    for name in ("steering_angle", speed):
        write_array(folder / "processed_log" / "CAN" / name / "t", samples)
    write_array(folder / "processed_log" / "CAN" / "steering_angle" / "value", samples - start_s)
    write_array(folder / "processed_log" / "CAN" / speed / "value", (samples - start_s)[:, None])
    if level is not None:
        write_video(folder / "video.hevc", [level + 10 * k for k in range(frames)])
    return folder


def levels(images) -> list[int]:
    return [round(float(image.mean()) / 10) * 10 for image in images]


def test_a_segment(tmp_path):
    folder = write_segment(tmp_path / ROUTE / "40", start_s=46408.5, level=40)
    [drive] = drives(folder)
    assert drive.name == "b0c9d2329ad1606b-2018-08-02--08-34-47-40"
    assert drive.vehicle.name == "acura-ilx"
    assert (drive.time_ns / 1e9 - 46408.5).round(9).tolist() == [0.0, 0.05, 0.1, 0.15]
    assert drive.steering_wheel.time_ns[1] == 46_408_510_000_000
    since = np.arange(20) / 100
    np.testing.assert_allclose(np.degrees(drive.steering_wheel.value), since, atol=1e-9)
    np.testing.assert_allclose(drive.speed.value, since, atol=1e-9)
    assert levels(pickle.loads(pickle.dumps(drive.images)).read(0, 4)) == [40, 50, 60, 70]
    assert levels(drive.images.read(2, 3)) == [60]


def test_colours_are_rgb(tmp_path):
    folder = write_segment(tmp_path / "one", start_s=1.0, frames=1)
    with av.open(str(folder / "video.hevc"), "w", format="hevc") as container:
        stream = container.add_stream("libx265", rate=20, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        red = np.full((48, 64, 3), [200, 30, 30], dtype=np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        container.mux(stream.encode())
    image = next(drives(folder)[0].images.read(0, 1))
    np.testing.assert_allclose(image.mean(axis=(0, 1)), [200, 30, 30], atol=6)


def test_segments_of_a_route_are_one_drive_also_across_chunks(tmp_path):
    """Segment 10 follows 9, not 1, and is in the next chunk."""
    write_segment(tmp_path / "Chunk_1" / ROUTE / "9", start_s=540.0, level=100)
    write_segment(tmp_path / "Chunk_2" / ROUTE / "10", start_s=600.0, level=150, speed="car_speed")
    write_segment(tmp_path / "Chunk_1" / "other" / "1", start_s=60.0, level=20)
    first, second = drives(tmp_path)
    assert [first.name, second.name] == ["b0c9d2329ad1606b-2018-08-02--08-34-47", "other"]
    assert np.all(np.diff(first.time_ns) > 0)
    assert len(first) == 8
    assert len(first.speed.value) == 40
    assert levels(first.images.read(2, 6)) == [120, 130, 150, 160]
    assert first.provenance["segments"] == ["9", "10"]
    assert [drive.name for drive in drives(tmp_path / "Chunk_1")] == [first.name, "other"]


def test_missing_videos_are_counted_and_none_at_all_is_an_error(tmp_path):
    write_segment(tmp_path / "route" / "0", start_s=0.0)
    write_segment(tmp_path / "route" / "1", start_s=60.0, level=50)
    [drive] = drives(tmp_path)
    assert len(drive) == 4
    assert drive.left_out == {"missing_video": ("route/0",)}
    (tmp_path / "route" / "1" / "video.hevc").unlink()
    with pytest.raises(DataError, match=r"no video.hevc in 2 segments, and labels alone are no frames"):
        drives(tmp_path)


def test_a_short_video_ends_with_the_frame_it_lacks(tmp_path):
    folder = write_segment(tmp_path / "route" / "0", start_s=0.0, frames=6)
    write_video(folder / "video.hevc", [50, 60, 70])
    images = drives(folder)[0].images
    read = []
    with pytest.raises(DataError, match=r"0/video.hevc: ends or breaks at frame 3, expected 6 frames"):
        read.extend(images.read(1, 6))
    assert levels(read) == [60, 70]
    (folder / "video.hevc").unlink()
    with pytest.raises(DataError, match="ends or breaks at frame 3"):
        next(images.read(4, 5))  # known by now: the video is not decoded again
    assert levels(drives(write_segment(tmp_path / "x", start_s=0.0, level=9))[0].images.read(9, 12)) == []


def test_frames_without_a_time_are_counted(tmp_path):
    """Which times belong to which frames is open then; the first are taken, as the data set's own tools do."""
    long = write_segment(tmp_path / "route" / "0", start_s=0.0, frames=4, level=50)
    write_video(long / "video.hevc", [50, 60, 70, 80, 90, 100])
    write_segment(tmp_path / "route" / "1", start_s=60.0, frames=4, level=100)
    [drive] = drives(tmp_path)
    assert levels(drive.images.read(0, 8)) == [50, 60, 70, 80, 100, 110, 120, 130]
    assert drive.left_out == {
        "frame_without_time": ("route/0/video.hevc frame 4", "route/0/video.hevc frame 5")
    }
    config = PrepConfig(reader="comma2k19", source=tmp_path, on_bad="refuse")
    with pytest.raises(DataError, match=r"frame_without_time, first route/0/video\.hevc frame 4"):
        prepare(config, tmp_path / "out")


def test_the_real_segment_turns_left_where_its_angle_is_positive(shared_data, tmp_path):
    """The sign and the unit against the poses: curvature from position and velocity alone."""
    folder = tmp_path / "segment"
    shutil.copytree(shared_data / "comma2k19_can", folder)
    write_video(folder / "video.hevc", [90, 100])
    [drive] = drives(folder)
    assert len(drive) == 1200
    position = np.load(folder / "global_pose" / "frame_positions")
    velocity = np.load(folder / "global_pose" / "frame_velocities")
    time_s = drive.time_ns / 1e9
    acceleration = np.gradient(velocity, time_s, axis=0)
    window = np.ones(20) / 20
    acceleration = np.stack([np.convolve(column, window, "same") for column in acceleration.T], axis=1)
    left = np.cross(position, velocity)
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    speed = np.linalg.norm(velocity, axis=1)
    curvature = np.sum(acceleration * left, axis=1) / speed**2
    angle = np.interp(time_s, drive.steering_wheel.time_ns / 1e9, drive.steering_wheel.value)
    middle = slice(30, -30)
    assert np.corrcoef(curvature[middle], angle[middle])[0, 1] > 0.7
    ratio = np.polyfit(curvature[middle], angle[middle], 1)[0]
    assert 40 < ratio < 70  # wheelbase, steering ratio and slip of a car: 52 to 57 m at this speed
    measured = np.interp(time_s, drive.speed.time_ns / 1e9, drive.speed.value)
    np.testing.assert_allclose(measured[middle], speed[middle], atol=0.5)


def test_recognised(tmp_path, shared_data):
    write_segment(tmp_path / "Chunk_1" / ROUTE / "0", start_s=0.0)
    for folder in (tmp_path, tmp_path / "Chunk_1", tmp_path / "Chunk_1" / ROUTE / "0"):
        assert recognise(folder) == "comma2k19"
    assert recognises(shared_data / "comma2k19_can")
    assert not recognises(shared_data / "bdd_oia_100")
    assert not recognises(tmp_path / "nothing")
    with pytest.raises(DataError, match="no comma2k19 segment found"):
        drives(tmp_path / "nothing")


class Dangerous:
    def __reduce__(self):
        return (Path.touch, (Path("unpickled"),))


def bad_arrays() -> dict[str, bytes]:
    import io

    def saved(array: np.ndarray, **options) -> bytes:
        file = io.BytesIO()
        np.save(file, array, **options)
        return file.getvalue()

    archive = io.BytesIO()
    np.savez(archive, t=np.zeros(4))
    good = saved(np.arange(4.0))
    return {
        "empty": b"",
        "text": b"0.0\n0.05\n",
        "cut": good[:-8],
        "claims": good.replace(b"(4,)", b"(99999999999,)"),
        "pickle": pickle.dumps(Dangerous()),
        "objects": saved(np.array([Dangerous()], dtype=object), allow_pickle=True),
        "archive": archive.getvalue(),
        "names": saved(np.array(["a", "b"])),
        "matrix": saved(np.zeros((4, 2))),
        "scalar": saved(np.array(1.0)),
        "unknown": saved(np.array([0.0, np.nan, 0.1, 0.15])),
        "nested": good[:8] + (9000).to_bytes(2, "little") + b"(" * 9000,
    }


@pytest.mark.parametrize("name", bad_arrays())
def test_malformed_arrays_are_one_line_and_never_unpickled(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_segment(tmp_path / "segment", start_s=0.0)
    (folder / "video.hevc").write_bytes(b"")
    (folder / "global_pose" / "frame_times").write_bytes(bad_arrays()[name])
    with pytest.raises(DataError) as error:
        drives(folder)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "unpickled").exists()


def test_contradictions(tmp_path):
    folder = write_segment(tmp_path / "route" / "0", start_s=0.0, level=50)
    shutil.copytree(folder, tmp_path / "route" / "00")
    with pytest.raises(DataError, match="segment 00 of route is there twice"):
        drives(tmp_path)
    shutil.rmtree(tmp_path / "route" / "00")
    shutil.copytree(folder, tmp_path / "route" / "extra")
    with pytest.raises(DataError, match="named by its number"):
        drives(tmp_path)
    write_array(folder / "processed_log" / "CAN" / "speed" / "value", np.zeros(3))
    with pytest.raises(DataError, match="20 times and 3 values"):
        drives(folder)
    shutil.rmtree(folder / "global_pose")
    with pytest.raises(DataError, match="has no global_pose/frame_times"):
        drives(folder)


def test_values_that_no_car_has_are_unknown(tmp_path):
    folder = write_segment(tmp_path / "one", start_s=0.0, level=50)
    signalling = np.frombuffer(b"\x01\0\0\0\0\0\xf0\x7f", np.float64)[0]
    values = np.array([10.0, 1e300, np.inf, signalling, -1081.0] * 4)
    write_array(folder / "processed_log" / "CAN" / "steering_angle" / "value", values)
    value = drives(folder)[0].steering_wheel.value
    np.testing.assert_allclose(value[::5], np.radians(10.0))
    assert np.isnan(value.reshape(4, 5)[:, 1:]).all()


def test_links_out_of_the_source_are_not_followed(tmp_path):
    write_segment(tmp_path / "outside" / "0", start_s=0.0, level=50)
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "route").symlink_to(tmp_path / "outside")
    assert not recognises(inside)


def test_damaged_video(tmp_path):
    """Flipped bytes and a file of another kind give images or DataError, and the drive stays readable."""
    folder = write_segment(tmp_path / "route" / "0", start_s=0.0, frames=6, level=50)
    whole = (folder / "video.hevc").read_bytes()
    generator = np.random.default_rng(0)
    for damaged in [b"", b"\0" * 500, whole[:40], *(flipped(whole, generator) for _ in range(20))]:
        (folder / "video.hevc").write_bytes(damaged)
        images = drives(folder)[0].images
        for row in range(6):
            try:
                assert next(images.read(row, row + 1)).shape[2] == 3
            except DataError as fault:
                message = str(fault)
                assert "ends or breaks" in message


def flipped(data: bytes, generator: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for at in generator.integers(0, len(data), 5):
        damaged[at] ^= 0xFF
    return bytes(damaged)
