"""Every range of every kind of video equals a decode from its start, shown as a player shows it."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from data_prep.errors import DataError
from data_prep.video import Video, frame_durations_ns
from tests.data_prep.videos import (
    KINDS,
    Kind,
    decoded_in_one_pass,
    number_of,
    numbered,
    without_index,
    write,
    write_raw,
)

H264 = KINDS["h264"]


def same(found, expected) -> bool:
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


def read_in_parts(video: Video, size: int) -> list[np.ndarray]:
    starts = range(0, len(video), size)
    return [image for at in starts for image in video.read(at, min(at + size, len(video)))]


@pytest.mark.parametrize("name", [*KINDS, "AVI without index", "raw H.264", "raw HEVC"])
def test_every_range_equals_one_pass(name, tmp_path):
    if name.startswith("raw"):
        codec = "libx264" if name == "raw H.264" else "libx265"
        path = write_raw(tmp_path / ("clip.h264" if codec == "libx264" else "clip.hevc"), codec)
        video = Video.index(path, rate_hz=20)
    elif name == "AVI without index":
        video = Video.index(without_index(write(tmp_path / "clip.avi", KINDS["AVI"])))
    else:
        video = Video.index(write(tmp_path / f"clip{KINDS[name].suffix}", KINDS[name]))
    whole = decoded_in_one_pass(video.path)
    assert [number_of(image) for image in whole] == list(range(100))
    assert len(video) == 100
    assert same(read_in_parts(video, 37), whole)
    elsewhere = pickle.loads(pickle.dumps(video))
    for start in np.random.default_rng(0).permutation(100)[:25]:
        assert same(list(elsewhere.read(start, start + 1)), whole[start : start + 1]), start
    steps = np.diff(video.time_ns)
    assert np.all(np.abs(steps - 50_000_000) <= 1_000_000)  # Matroska rounds to milliseconds


def test_a_decode_goes_on_where_the_last_range_ended(tmp_path, monkeypatch):
    video = Video.index(write(tmp_path / "clip.mp4", H264))
    openings = []
    opening = av.open
    monkeypatch.setattr(
        av, "open", lambda *args, **options: openings.append(args) or opening(*args, **options)
    )
    assert [number_of(image) for image in read_in_parts(video, 10)] == list(range(100))
    assert len(openings) == 1
    list(video.read(0, 5))
    list(video.read(50, 55))  # a keyframe lies between
    assert len(openings) == 3


@pytest.mark.parametrize(
    ("name", "decodes"), [("h264", 1), ("MPEG-TS", 1), ("AVI", 1), ("AVI with B-frames", 2)]
)
def test_a_video_is_decoded_to_count_only_where_its_packets_cannot_be_believed(
    name, decodes, tmp_path, monkeypatch
):
    path = write(tmp_path / f"clip{KINDS[name].suffix}", KINDS[name])
    openings = []
    opening = av.open
    monkeypatch.setattr(
        av, "open", lambda *args, **options: openings.append(args) or opening(*args, **options)
    )
    Video.index(path)
    assert len(openings) == decodes


def test_times_of_a_variable_rate(tmp_path):
    stamps = [0, 40, 80, 200, 240, 241, 300, 310]
    for suffix in (".mkv", ".mp4"):
        kind = Kind(suffix, "libx264", {"bf": "2"})
        video = Video.index(write(tmp_path / f"clip{suffix}", kind, 8, stamps_ms=stamps))
        assert (video.time_ns // 1_000_000).tolist() == stamps
    lasting = frame_durations_ns(video.time_ns) // 1_000_000
    assert lasting.tolist() == [40, 40, 120, 40, 1, 59, 10, 40]
    assert frame_durations_ns(np.array([5])).tolist() == [0]


_ORIENTATIONS = [
    (1, 0, 0, 1),
    (0, 1, -1, 0),
    (-1, 0, 0, -1),
    (0, -1, 1, 0),
    (-1, 0, 0, 1),
    (1, 0, 0, -1),
    (0, 1, 1, 0),
    (0, -1, -1, 0),
]


@pytest.mark.parametrize("turn", _ORIENTATIONS)
def test_frames_are_turned_as_the_display_matrix_says(turn, tmp_path):
    """Pixel by pixel: where (p, q) is shown, is (a p + c q, b p + d q)."""
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, :32], picture[:16, 32:], picture[16:, :32] = [255, 0, 0], [0, 255, 0], [0, 0, 255]
    path = write(tmp_path / "turned.mp4", H264, turn=turn, pictures=[picture] * 3)
    [coded] = decoded_in_one_pass(path)[:1]
    video = Video.index(path)
    a, b, c, d = turn
    q, p = np.indices((32, 64))
    across, down = a * p + c * q, b * p + d * q
    upright = np.zeros((video.height, video.width, 3), np.uint8)
    upright[down - down.min(), across - across.min()] = coded
    assert np.array_equal(next(video.read(0, 1)), upright)


def test_a_frame_turned_by_another_angle_is_refused(tmp_path):
    path = write(tmp_path / "skew.mp4", H264, 3)
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40
    skew = np.array([46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(data[:at] + skew + data[at + 36 :])
    with pytest.raises(DataError, match=r"skew\.mp4: frames are .*not a multiple of 90 degrees"):
        Video.index(path)


@pytest.mark.parametrize(
    ("aspect", "size"), [(Fraction(4, 3), (213, 48)), (Fraction(1, 2), (160, 96)), (Fraction(1), (160, 48))]
)
def test_pixels_are_shown_square(aspect, size, tmp_path):
    video = Video.index(write(tmp_path / "wide.mp4", H264, 5, pixel_aspect=aspect))
    assert (video.width, video.height) == size
    assert next(video.read(2, 3)).shape == (size[1], size[0], 3)


def test_pixel_aspect_comes_before_the_turn(tmp_path):
    path = write(tmp_path / "both.mp4", H264, 5, pixel_aspect=Fraction(2), turn=(0, 1, -1, 0))
    video = Video.index(path)
    assert (video.width, video.height) == (48, 320)
    assert next(video.read(0, 1)).shape == (320, 48, 3)


def test_cover_art_before_the_drive_is_passed_over(tmp_path):
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=20)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        drive = container.add_stream("libx264", rate=20)
        drive.width, drive.height, drive.pix_fmt = 160, 48, "yuv420p"
        picture = np.full((64, 64, 3), 200, np.uint8)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(cover.encode(None))
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 20)
            container.mux(drive.encode(frame))
        container.mux(drive.encode(None))
    video = Video.index(path)
    assert [number_of(image) for image in video.read(0, len(video))] == list(range(40))


def test_the_default_stream_is_read_and_not_a_preview_before_it(tmp_path):
    path = tmp_path / "preview.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=20) for _ in range(2)]
        for stream, (height, width) in zip(streams, [(24, 80), (48, 160)], strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        streams[0].disposition, streams[1].disposition = Disposition(0), Disposition.default
        for number in range(10):
            for stream, step in zip(streams, (2, 1), strict=True):
                picture = np.ascontiguousarray(numbered(number)[::step, ::step])
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 20)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    video = Video.index(path)
    assert (video.width, video.height, len(video)) == (160, 48, 10)


def test_a_raw_stream_needs_a_rate_and_others_refuse_one(tmp_path):
    raw = write_raw(tmp_path / "clip.h264", "libx264", 20)
    with pytest.raises(
        DataError, match=r"clip\.h264: a raw h264 stream has no times; .*--option rate=20.*ffmpeg"
    ):
        Video.index(raw)
    with pytest.raises(DataError, match="rate is 0; expected"):
        Video.index(raw, rate_hz=0)
    video = Video.index(raw, rate_hz=30000 / 1001)
    assert video.time_ns[[1, 19]].tolist() == [33_366_667, 633_966_667]
    with pytest.raises(DataError, match=r"clip\.mp4: has times of its own"):
        Video.index(write(tmp_path / "clip.mp4", H264, 3), rate_hz=20)


def overwritten(path: Path, *, first: int, last: int) -> Path:
    """Zeroes the data of some packets of the file, which keep their place and time."""
    with av.open(str(path)) as container:
        spans = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for at, size in spans[first : last + 1]:
        data[at : at + size] = bytes(size)
    path.write_bytes(bytes(data))
    return path


def test_damage_in_the_middle_costs_its_frames_and_is_found_once(tmp_path, monkeypatch):
    """Without B-frames, so that packets and frames have one order."""
    kind = Kind(".mp4", "libx264", {"g": "10", "bf": "0"})
    video = Video.index(overwritten(write(tmp_path / "clip.mp4", kind), first=34, last=36))
    assert len(video) == 100
    openings = []
    opening = av.open
    monkeypatch.setattr(
        av, "open", lambda *args, **options: openings.append(args) or opening(*args, **options)
    )
    found, faults = {}, {}
    at = 0
    while at < 100:
        try:
            for image in video.read(at, 100):
                found[at] = number_of(image)
                at += 1
        except DataError as fault:
            faults[at] = str(fault)
            at += 1
    assert faults == {
        at: f"clip.mp4: frame {at} cannot be decoded; copy or re-encode the video" for at in range(34, 40)
    }
    assert list(found) == [*range(34), *range(40, 100)]
    assert all(number == at for at, number in found.items())
    assert len(openings) == 1


def test_damage_at_the_start_of_a_range_takes_no_frame_of_another(tmp_path):
    kind = Kind(".mp4", "libx264", {"g": "10", "bf": "0"})
    video = Video.index(overwritten(write(tmp_path / "clip.mp4", kind), first=40, last=40))
    with pytest.raises(DataError, match="frame 40 cannot"):
        next(video.read(40, 60))
    with pytest.raises(DataError, match="frame 49 cannot"):
        next(video.read(49, 60))
    assert number_of(next(video.read(50, 60))) == 50
    assert number_of(next(video.read(39, 40))) == 39


def readable(video: Video, size: int) -> list[np.ndarray]:
    """Every frame that can be decoded, read in ranges; one that cannot be is stepped over, as prep does."""
    found, at = [], 0
    while at < len(video):
        try:
            for image in video.read(at, min(at + size, len(video))):
                found.append(image)
                at += 1
        except DataError:
            at += 1
    return found


def test_a_video_that_does_not_begin_with_a_keyframe(tmp_path):
    """What a decode from the start gives, and the frames before the first keyframe are counted as lost."""
    whole, path = write(tmp_path / "whole.mkv", KINDS["h264 mkv"]), tmp_path / "joined.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= 5:
                packet.stream = stream
                container.mux(packet)
    video = Video.index(path)
    expected = decoded_in_one_pass(path)
    assert len(video) == 95
    for size in (1, 7, 95):
        found = readable(video, size)
        assert [number_of(image) for image in found] == [number_of(image) for image in expected]
        assert number_of(found[0]) == 12


@pytest.mark.parametrize("name", ["h264", "MPEG-TS with B-frames", "AVI with B-frames", "raw"])
def test_changed_bytes_give_frames_or_one_line(name, tmp_path):
    kind = Kind(".h264", "libx264", {"g": "12", "bf": "2"}, "h264") if name == "raw" else KINDS[name]
    whole = write(tmp_path / f"whole{kind.suffix}", kind, 40).read_bytes()
    generator = np.random.default_rng(0)
    path, faults = tmp_path / f"changed{kind.suffix}", []
    for _ in range(8):
        data = bytearray(whole)
        for at in generator.integers(0, len(data), 8):
            data[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(data)
        try:
            video = Video.index(path, rate_hz=20 if name == "raw" else None)
        except DataError as fault:
            faults.append(str(fault))
            continue
        at_once, in_parts = (len(readable(video, size)) for size in (40, 7))
        assert at_once == in_parts <= len(video)
    assert all("\n" not in fault for fault in faults)


def test_a_file_that_is_cut_short_gives_what_is_left(tmp_path):
    for name in ("MPEG-TS with B-frames", "AVI with B-frames", "h264 mkv"):
        path = write(tmp_path / f"clip{KINDS[name].suffix}", KINDS[name])
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        video = Video.index(path)
        whole = decoded_in_one_pass(path)
        count = 0
        for at in range(0, len(video), 7):
            try:
                for image in video.read(at, min(at + 7, len(video))):
                    assert count + 2 >= len(whole) or np.array_equal(image, whole[count])  # cut through
                    count += 1
            except DataError:
                break
        assert 40 < count <= len(video) < 100
