"""Videos as phones, cameras and cut cables leave them, and what a replay plays of them: every frame, at its time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep.decoding import Dropped
from data_prep.policy import Policy
from data_prep.schema import VEHICLES
from driving_xai.errors import DataError
from driving_xai.replay.frames import FrameSource, Selection
from driving_xai.replay.source import open_source
from tests.data_prep.videos import (
    KINDS,
    Kind,
    decoded_in_one_pass,
    number_of,
    without_index,
    write,
    write_raw,
)

CAR = VEHICLES["lincoln-mkz"]
VARIABLE_MS = [*range(0, 660, 33), *range(660, 2660, 100)]
"""Twenty pictures at 30 a second, then twenty at 10, as phones do in the dark."""


def opened(path: Path, *, policy: Policy | None = None, **selection: object) -> FrameSource:
    return open_source(path, vehicle=CAR, policy=policy, selection=Selection(**selection))  # type: ignore[arg-type]


def numbers(source: FrameSource) -> list[int]:
    return [number_of(seen.frame.image) for seen in source]


def damaged(path: Path, first: int, last: int) -> Path:
    """Overwrites the packets `first` to `last`."""
    with av.open(str(path)) as container:
        packets = [each for each in container.demux(video=0) if each.size][first : last + 1]
        spans = [(each.pos, each.size) for each in packets]
    data = bytearray(path.read_bytes())
    for at, size in spans:
        data[at + 4 : at + size] = bytes(size - 4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "h264 open GOP",
        "hevc open GOP",
        "h264 intra refresh",
        "MPEG-TS",
        "MPEG-TS with B-frames",
        "MPEG-TS named mp4",
        "MPEG-2",
        "AVI with B-frames",
    ],
)
def test_a_clip_is_the_frames_of_a_plain_decode_from_every_start(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"clip{KINDS[name].suffix}", KINDS[name], 60)
    whole = decoded_in_one_pass(path)
    for start in (0, 1, 13, 29, 44, 58):
        images = [seen.frame.image for seen in opened(path, start_s=max(0.0, start / 20 - 1e-4))]
        assert len(images) == len(whole) - start
        for image, expected in zip(images, whole[start:], strict=True):
            np.testing.assert_array_equal(image, expected)


def test_an_avi_that_lost_its_index(tmp_path: Path) -> None:
    path = without_index(write(tmp_path / "clip.avi", KINDS["AVI"], 60))
    assert numbers(opened(path, start_s=1.85)) == list(range(37, 60))


def test_a_phone_held_sideways_is_upright(tmp_path: Path) -> None:
    tall = np.zeros((64, 48, 3), np.uint8)
    tall[:32] = (250, 0, 0)
    path = write(tmp_path / "phone.mov", KINDS["h264"], turn=(0, 1, -1, 0), pictures=[tall] * 3)
    image = next(iter(opened(path))).frame.image
    assert image.shape == (48, 64, 3)
    right, left = image[:, 48:].mean((0, 1)), image[:, :16].mean((0, 1))
    assert right[0] > 200
    assert left[0] < 50, "the upper half is shown on the right"


def test_a_raw_stream_asks_for_its_rate_and_plays_at_it(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "raw.h264", "libx264", 30)
    with pytest.raises(DataError, match=r"no times; give its frames a second, as --option rate=20"):
        opened(path)
    source = opened(path, reader_options={"rate": 25})
    assert source.frame_rate == 25
    assert source.constant
    assert numbers(source) == list(range(30))
    with pytest.raises(DataError, match="has times of its own"):
        opened(write(tmp_path / "v.mp4", KINDS["h264"], 5), reader_options={"rate": 25})
    with pytest.raises(DataError, match="speed"):
        opened(path, reader_options={"speed": 25})


def test_options_where_no_reader_takes_them(tmp_path: Path) -> None:
    write(tmp_path / "v.mp4", KINDS["h264"], 2)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"got --option rate, which is for readers; .*--set frame_rate=20"):
        opened(tmp_path / "images", reader_options={"rate": 25})


class TestTime:
    def test_a_variable_rate_keeps_its_own_time(self, tmp_path: Path) -> None:
        source = opened(write(tmp_path / "v.mp4", KINDS["h264"], 40, stamps_ms=VARIABLE_MS))
        assert not source.constant
        np.testing.assert_allclose(source.shown_ns[:-1] / 1e6, VARIABLE_MS, atol=0.1)
        assert source.shown_ns[-1] == pytest.approx(2.593e9, abs=1e6), "the last lasts as long as is usual"
        lasts = [seen.shown_for_ns for seen in source]
        np.testing.assert_allclose(lasts, np.diff(source.shown_ns))

    def test_a_clip_of_it_begins_at_zero(self, tmp_path: Path) -> None:
        path = write(tmp_path / "v.mp4", KINDS["h264"], 40, stamps_ms=VARIABLE_MS)
        source = opened(path, start_s=0.6, end_s=1.0)
        assert [round(at / 1e6) for at in source.shown_ns.tolist()] == [0, 33, 133, 233, 333, 433]

    def test_stamps_that_jitter_make_no_variable_rate(self, tmp_path: Path) -> None:
        stamps = [50 * number + 9 * (number % 4 == 1) for number in range(30)]
        source = opened(write(tmp_path / "v.mp4", KINDS["h264"], 30, stamps_ms=stamps))
        assert source.frame_rate == 20
        assert source.constant

    def test_a_video_is_shown_through_a_hole_and_a_recording_not(
        self, tmp_path: Path, recording: Path
    ) -> None:
        stamps = [*range(0, 500, 50), *range(3000, 3500, 50)]
        source = opened(write(tmp_path / "v.mp4", KINDS["h264"], 20, stamps_ms=stamps))
        assert source.shown_ns[-1] == pytest.approx(3.5e9, abs=1e6)
        assert source.begins.sum() == 2
        drive = opened(recording)
        assert drive.constant
        assert drive.shown_ns[-1] == 50_000_000 * len(drive)


class TestDamage:
    @pytest.fixture
    def video(self, tmp_path: Path) -> Path:
        kind = Kind(".mp4", "libx264", {"g": "10", "bf": "0"})
        return damaged(write(tmp_path / "clip.mp4", kind, 40), 14, 14)

    def test_frames_are_left_out_and_counted(self, video: Path) -> None:
        source, dropped = opened(video), Dropped(Policy())
        seen = list(source.read(dropped))
        assert dropped.by_reason == {"undecodable_image": [14, 15, 16, 17, 18, 19]}
        assert [each.frame.index for each in seen] == [*range(14), *range(20, 40)]
        assert [number_of(each.frame.image) for each in seen] == [*range(14), *range(20, 40)]
        assert [each.frame.index for each in seen if each.begins] == [0, 20], "a memory ends there"
        assert seen[14].shown_at_ns == 20 * 50_000_000, "the one before is shown until then"

    @pytest.mark.parametrize("policy", [Policy(on_bad="refuse"), Policy(refuse=("undecodable_image",))])
    def test_they_are_refused_where_that_is_asked(self, video: Path, policy: Policy) -> None:
        frames = iter(opened(video, policy=policy))
        assert [next(frames).frame.index for _ in range(14)] == list(range(14))
        with pytest.raises(DataError, match=r"clip\.mp4: frame 14 cannot be decoded"):
            next(frames)

    def test_a_video_without_any_good_frame(self, tmp_path: Path) -> None:
        kind = Kind(".mp4", "libx264", {"g": "10", "bf": "0"})
        path = damaged(write(tmp_path / "clip.mp4", kind, 30), 20, 20)
        with pytest.raises(DataError, match=r"none of its \d+ images can be used; the first: clip\.mp4: fr"):
            list(opened(path, start_s=1.0, end_s=1.4))

    def test_a_file_that_is_cut_short_plays_what_is_left(self, tmp_path: Path) -> None:
        path = write(tmp_path / "clip.ts", KINDS["MPEG-TS"], 60)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        found = numbers(opened(path))
        assert found[:30] == list(range(30))
        assert len(found) < 60


class TestNames:
    def test_two_videos_of_one_name_are_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "DJI_0001.mp4", KINDS["h264"], 2)
        write(tmp_path / "DJI_0001.mkv", KINDS["h264 mkv"], 2)
        for drive in (None, "DJI_0001"):
            with pytest.raises(DataError, match=r"2 drives would be named DJI_0001 \(.*mkv and .*mp4\)"):
                opened(tmp_path, drive=drive)

    def test_one_beside_them_can_be_chosen(self, tmp_path: Path) -> None:
        write(tmp_path / "a.mp4", KINDS["h264"], 2)
        write(tmp_path / "a.mkv", KINDS["h264 mkv"], 2)
        write(tmp_path / "b.mkv", KINDS["h264 mkv"], 3)
        assert len(opened(tmp_path, drive="b")) == 3

    def test_hidden_files_are_no_videos(self, tmp_path: Path) -> None:
        write(tmp_path / "a.mp4", KINDS["h264"], 2)
        (tmp_path / "._a.mp4").write_bytes(b"\0\5\x16\7")
        assert len(opened(tmp_path)) == 2

    def test_a_name_in_another_alphabet(self, tmp_path: Path) -> None:
        assert opened(write(tmp_path / "行车记录.mkv", KINDS["h264 mkv"], 2)).drive == "行车记录"


def test_cover_art_is_no_drive(tmp_path: Path) -> None:
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        drive = container.add_stream("libx264", rate=20)
        drive.width, drive.height, drive.pix_fmt = 160, 48, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(cover.encode(picture))
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 160, 3), 9 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 20)
            container.mux(drive.encode(frame))
        container.mux(drive.encode(None))
    assert [seen.frame.image.shape for seen in opened(path)] == [(48, 160, 3)] * 10
