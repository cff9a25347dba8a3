"""Videos: every range decodes to the same frames as one pass, and damage is told."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.errors import DataError
from data_prep.geometry import Geometry
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import recognise
from data_prep.readers.video import drives
from data_prep.shards.hdf5 import read_frames
from data_prep.shards.parquet import read_index
from tests.data_prep.recordings import scene
from tests.data_prep.videos import KINDS, number_of, write, write_raw


def write_video(
    path: Path, frames: int, *, stamps: list[int] | None = None, keyframe_every: int = 12
) -> Path:
    """H.264 with B-frames at 1 kHz time base, 40 ms apart unless stamps (ms) are given."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": str(keyframe_every), "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(scene(number), format="rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = 40 * number if stamps is None else stamps[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def decoded_in_one_pass(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", 50)


def test_any_range_equals_one_pass(video):
    (drive,) = drives(video)
    whole = decoded_in_one_pass(video)
    assert len(drive) == len(whole) == 50
    assert recognise(video) == "video"
    for start, stop in [(0, 50), (0, 1), (11, 14), (12, 13), (23, 37), (49, 50), (7, 7)]:
        made = list(drive.images.read(start, stop))
        assert len(made) == stop - start
        assert all(np.array_equal(a, b) for a, b in zip(made, whole[start:stop], strict=True))


def test_files_of_other_systems_are_no_videos(video, tmp_path):
    (tmp_path / "drive.mkv").write_bytes(video.read_bytes())
    (tmp_path / "._drive.mkv").write_bytes(b"\0\5\26\7 what macOS keeps beside a file")
    assert [drive.name for drive in drives(tmp_path)] == ["drive"]


def test_times_are_those_of_the_frames(tmp_path):
    stamps = [0, 40, 80, 200, 240, 241, 300, 310]
    (drive,) = drives(write_video(tmp_path / "variable.mkv", 8, stamps=stamps))
    assert (drive.time_ns // 1_000_000).tolist() == stamps
    assert drive.steering_wheel is None
    assert drive.speed is None


def test_shards_of_a_video_hold_its_frames_in_test(video, tmp_path):
    geometry = Geometry(height=24, width=32)
    manifest = prepare(
        PrepConfig(reader="video", source=video, geometry=geometry, frames_per_shard=15),
        tmp_path / "out",
        workers=2,
    )
    whole = decoded_in_one_pass(video)
    index = read_index(tmp_path / "out")
    assert set(index["split"]) == {"test"}
    assert manifest.config["split"] == "test"
    assert index["steering_wheel_rad"].isna().all()
    for row in index.itertuples():
        frame = read_frames(tmp_path / "out" / row.shard, row.row, row.row + 1)[0]
        assert np.array_equal(frame, geometry.apply(whole[row.frame]))


def test_a_cut_video_gives_what_is_there_or_one_clear_line(tmp_path):
    data = write_video(tmp_path / "whole.mkv", 50).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(data[: len(data) * 2 // 3])
    manifest = prepare(
        PrepConfig(reader="video", source=cut, geometry=Geometry(height=24, width=32)), tmp_path / "o"
    )
    report = manifest.quality["cut"]
    assert 20 < report["kept"] < 50
    assert report["kept"] + sum(report["dropped"].values()) == report["read"]
    headless = tmp_path / "cut.mp4"
    whole = write_video(tmp_path / "whole.mp4", 20).read_bytes()
    headless.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.mp4: (not a video|a video without frames)") as error:
        drives(headless)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"not a video" * 100])
def test_what_is_no_video_is_refused(data, tmp_path):
    (tmp_path / "x.mp4").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.mp4"):
        drives(tmp_path / "x.mp4")


def test_sound_without_pictures_is_refused(tmp_path):
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    (tmp_path / "sound.wav").rename(tmp_path / "sound.mp4")
    with pytest.raises(DataError, match="has no video stream"):
        drives(tmp_path / "sound.mp4")


def test_a_folder_without_video_and_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="no video found"):
        drives(tmp_path)
    with pytest.raises(DataError, match="no video found"):
        drives(tmp_path / "gone.mp4")


def test_the_real_video(shared_data):
    (drive,) = drives(shared_data / "carnd_video" / "solidWhiteRight.mp4")
    assert len(drive) == 221
    assert np.diff(drive.time_ns).tolist() == [40_000_000] * 220
    assert next(drive.images.read(220, 221)).shape == (540, 960, 3)


def test_an_unknown_codec_is_refused(tmp_path):
    data = write_video(tmp_path / "clip.mp4", 3).read_bytes()
    # The sample description's name says what the pictures are encoded with, and avcC how.
    (tmp_path / "clip.mp4").write_bytes(data.replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    with pytest.raises(DataError, match=r"clip\.mp4: its video codec is unknown; re-encode"):
        drives(tmp_path / "clip.mp4")


def test_a_title_in_a_broken_encoding_is_no_reason_to_refuse_the_pictures(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "AABBAABB"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(0), format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    assert b"AABBAABB" in data
    path.write_bytes(data.replace(b"AABBAABB", b"AA\xff\xfe\xff\xffBB"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    (drive,) = drives(path)
    assert len(list(drive.images.read(0, 1))) == 1


def test_a_raw_stream_is_read_at_the_rate_that_is_given(tmp_path):
    write_raw(tmp_path / "clip.hevc", "libx265", 40)
    with pytest.raises(DataError, match=r"clip\.hevc: a raw hevc stream has no times; .*--option rate=20"):
        drives(tmp_path)
    (drive,) = drives(tmp_path, rate=20)
    assert np.diff(drive.time_ns).tolist() == [50_000_000] * 39
    assert [number_of(image) for image in drive.images.read(30, 40)] == list(range(30, 40))
    write_raw(tmp_path / "other.h264", "libx264", 12)
    assert [len(drive) for drive in drives(tmp_path, rate=20)] == [40, 12]


def test_the_shown_size_is_noted(tmp_path):
    path = write(tmp_path / "phone.mp4", KINDS["h264"], 3, turn=(0, 1, -1, 0))
    (drive,) = drives(path)
    assert drive.provenance["size"] == "48x160"
    assert next(drive.images.read(0, 1)).shape == (160, 48, 3)


_CASES = {  # frames
    "rotated_90.mov": 40,
    "open_gop_hevc.mp4": 120,
    "mpegts_in_mp4.mp4": 120,
    "mpegts_bframes.mp4": 120,
    "no_index.avi": 120,
    "avi_bframes.avi": 60,
    "raw.hevc": 60,
    "cover_first.mp4": 40,
    "variable_rate.mp4": 60,
}


@pytest.mark.parametrize("name", _CASES)
@pytest.mark.parametrize("frames_per_shard", [37, 2000])
def test_files_that_follow_public_reports(name, frames_per_shard, shared_data, tmp_path):
    path = shared_data.parent / "cases" / "video" / name
    if not path.is_file():
        pytest.skip("needs ../shared/cases")
    manifest = prepare(
        PrepConfig(
            reader="video",
            source=path,
            reader_options={"rate": 20} if name == "raw.hevc" else {},
            geometry=Geometry(height=120, width=160),
            frames_per_shard=frames_per_shard,
        ),
        tmp_path / "out",
    )
    (report,) = manifest.quality.values()
    assert (report["read"], report["kept"], report["dropped"]) == (_CASES[name], _CASES[name], {})
    index = read_index(tmp_path / "out")
    frames = [
        read_frames(tmp_path / "out" / row.shard, row.row, row.row + 1)[0] for row in index.itertuples()
    ]
    if name == "rotated_90.mov":
        assert all(np.abs(frame[15, 15].astype(int) - [255, 0, 0]).max() < 4 for frame in frames)
    else:
        assert [number_of(frame[50:]) for frame in frames] == list(range(_CASES[name]))
