"""Where frames come from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.alignment import Alignment, align
from data_prep.decoding import Dropped
from data_prep.policy import Policy
from data_prep.schema import VEHICLES, Drive, Signal
from data_prep.shards.manifest import Manifest
from driving_xai.errors import DataError
from driving_xai.replay import source as sources
from driving_xai.replay.frames import FrameSource, Selection, measured_rate
from driving_xai.replay.sink import Encoding, open_sink
from driving_xai.replay.source import OwnShards, open_source

from .conftest import FRAMES, GEOMETRY, HOLE_AFTER, PERIOD_NS, picture_of

CAR = VEHICLES["acura-ilx"]


def opened(path: Path, **options: object) -> FrameSource:
    own = options.pop("own_shards", None)
    return open_source(
        path,
        vehicle=CAR,
        frame_rate=Fraction(10),
        selection=Selection(**options),  # type: ignore[arg-type]
        own_shards=own,  # type: ignore[arg-type]
    )


class TestRecording:
    def test_it_is_recognised_and_its_rate_measured(self, recording: Path) -> None:
        source = opened(recording)
        assert (source.kind, source.drive, len(source)) == ("udacity-csv", "drive-a", FRAMES)
        assert source.frame_rate == 20
        assert source.vehicle.name == "lincoln-mkz", "a labelled source knows its vehicle"
        assert source.labelled
        assert not source.speed_known

    def test_its_frames_come_in_order_with_their_controls(self, recording: Path) -> None:
        frames = list(opened(recording))
        assert [seen.frame.index for seen in frames] == list(range(FRAMES))
        assert all(b.frame.time_ns - a.frame.time_ns > 0 for a, b in pairwise(frames))
        np.testing.assert_allclose(
            [seen.frame.steering_wheel_rad for seen in frames], 0.3 * np.sin(np.arange(FRAMES) / 3)
        )
        assert all(math.isnan(seen.frame.speed_mps) for seen in frames)
        difference = np.abs(frames[5].frame.image.astype(int) - picture_of(5))
        assert difference.mean() < 12, "RGB, as written up to the JPEG's loss"

    def test_a_hole_in_time_begins_a_new_run(self, recording: Path) -> None:
        begins = [seen.frame.index for seen in opened(recording) if seen.begins]
        assert begins == [0, HOLE_AFTER]

    def test_the_truth_is_smoothed_and_starts_anew_after_the_hole(self, recording: Path) -> None:
        for first, last in ((0, HOLE_AFTER), (HOLE_AFTER, FRAMES)):
            frames = list(opened(recording))[first:last]
            expected = math.nan
            for seen in frames:
                raw = seen.frame.steering_wheel_rad
                expected = raw if math.isnan(expected) else 0.2 * raw + 0.8 * expected
                assert seen.steering_wheel_rad_smoothed == pytest.approx(expected)

    def test_with_a_lead_a_frames_truth_is_the_wheel_so_much_later(self, recording: Path) -> None:
        def played(lead_s: float) -> list[float]:
            how = Alignment(lead_s=lead_s, smoothing=1.0)
            source = open_source(recording, vehicle=CAR, frame_rate=Fraction(10), alignment=how)
            assert source.lead_s == lead_s
            return [seen.steering_wheel_rad_smoothed for seen in source]

        now, later = played(0.0), played(0.1)
        assert later[: HOLE_AFTER - 2] == now[2:HOLE_AFTER]
        assert all(math.isnan(angle) for angle in later[HOLE_AFTER - 2 : HOLE_AFTER]), "nothing was recorded"

    def test_where_samples_were_lost_the_truth_is_preps_and_the_frame_is_played(self, monkeypatch) -> None:
        """The wheel is silent for half a second while the camera runs on."""
        time_ns = np.arange(40, dtype=np.int64) * PERIOD_NS
        heard = np.r_[0:12, 24:40]
        wheel = Signal(time_ns=time_ns[heard], value=np.sin(heard / 5.0))
        drive = Drive(
            name="d",
            source="udacity-csv",
            camera="center",
            vehicle=CAR,
            time_ns=time_ns,
            images=None,  # type: ignore[arg-type]
            steering_wheel=wheel,
        )
        monkeypatch.setattr(sources, "READERS", {"udacity-csv": lambda path: [drive]})
        played = opened(Path("d"), reader="udacity-csv")
        expected = align(drive, Alignment())
        assert len(expected) < 40 == len(played)
        assert not played.begins[1:].any(), "the camera lost nothing"
        for name in ("steering_wheel_rad", "steering_wheel_rad_smoothed"):
            np.testing.assert_array_equal(played.controls[name][expected.frame], expected.columns[name])
        unknown = np.setdiff1d(np.arange(40), expected.frame)
        assert np.isnan(played.controls["steering_wheel_rad_smoothed"][unknown]).all()

    def test_a_clip_is_cut_in_the_drives_own_time_and_keeps_the_truth(self, recording: Path) -> None:
        whole = {seen.frame.index: seen for seen in opened(recording)}
        clip = list(opened(recording, start_s=0.1, end_s=0.4))
        assert [seen.frame.index for seen in clip] == [2, 3, 4, 5, 6, 7]
        assert clip[0].begins
        for seen in clip:
            assert seen.steering_wheel_rad_smoothed == whole[seen.frame.index].steering_wheel_rad_smoothed
        assert clip[0].time_s == whole[2].time_s == pytest.approx(0.1), "of the whole drive"


class TestShards:
    def test_they_say_what_the_recording_says(self, recording: Path, shards: Path) -> None:
        """The same truth, whether smoothed here or by prep."""
        raw, prepared = list(opened(recording)), list(opened(shards))
        assert len(raw) == len(prepared)
        for ours, theirs in zip(raw, prepared, strict=True):
            assert ours.frame.index == theirs.frame.index
            assert ours.frame.time_ns == theirs.frame.time_ns
            assert (ours.segment, ours.begins) == (theirs.segment, theirs.begins)
            assert ours.steering_wheel_rad_smoothed == theirs.steering_wheel_rad_smoothed
            np.testing.assert_array_equal(GEOMETRY.apply(ours.frame.image), theirs.frame.image)

    def test_they_are_a_models_input_already(self, shards: Path) -> None:
        source = opened(shards)
        assert source.cropped
        assert (source.kind, source.reader) == ("shards", "udacity-csv")
        assert source.shards is not None
        assert source.shards.sha256 == Manifest.load(shards).sha256

    def test_frames_say_how_the_model_saw_them_where_that_is_known(self, shards: Path) -> None:
        halves = np.array(["train"] * 10 + ["test"] * (FRAMES - 10))
        own = OwnShards(Manifest.load(shards).sha256, lambda index: halves)
        assert [seen.split for seen in opened(shards, own_shards=own)] == halves.tolist()
        assert {seen.split for seen in opened(shards, own_shards=own._replace(sha256="other"))} == {""}

    def test_a_split_can_be_chosen_and_begins_anew(self, shards: Path) -> None:
        parts = np.array((["train"] * 4 + ["test"] * 4) * 2)[:FRAMES]
        own = OwnShards(Manifest.load(shards).sha256, lambda index: parts)
        frames = list(opened(shards, own_shards=own, split="test"))
        assert [seen.frame.index for seen in frames] == np.flatnonzero(parts == "test").tolist()
        assert [seen.frame.index for seen in frames if seen.begins] == [4, 12]


class TestImageFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for number in range(12):
            cv2.imwrite(str(tmp_path / f"frame_{number}.png"), np.full((20, 30, 3), 10 * number, np.uint8))
        (tmp_path / "notes.txt").write_text("no image")
        return tmp_path

    def test_frames_are_in_the_order_a_person_expects(self, folder: Path) -> None:
        source = opened(folder)
        assert source.kind == "image-folder"
        assert [int(seen.frame.image[0, 0, 0]) for seen in source] == [10 * number for number in range(12)]

    def test_they_take_the_rate_and_the_vehicle_given(self, folder: Path) -> None:
        source = open_source(folder, vehicle=CAR, frame_rate=Fraction(30000, 1001))
        assert source.frame_rate == Fraction(30000, 1001)
        assert source.time_ns[-1] == round(11 * 1001 / 30000 * 1e9)
        assert source.vehicle == CAR
        assert not source.labelled

    def test_one_image_is_a_drive_too(self, tmp_path: Path) -> None:
        cv2.imwrite(str(tmp_path / "only.jpg"), np.zeros((20, 30, 3), np.uint8))
        assert len(list(opened(tmp_path))) == 1

    def test_an_image_of_another_size_is_named(self, folder: Path) -> None:
        cv2.imwrite(str(folder / "frame_7.png"), np.zeros((20, 31, 3), np.uint8))
        with pytest.raises(DataError, match=r"frame 7 of .* is 31x20, the first 30x20"):
            list(opened(folder))

    def test_damaged_images_are_left_out_and_counted_or_refused(self, folder: Path) -> None:
        (folder / "frame_3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        (folder / "frame_0.png").write_bytes(b"")
        source, dropped = opened(folder), Dropped(Policy())
        seen = list(source.read(dropped))
        assert dropped.by_reason == {"undecodable_image": [0, 3]}
        assert [int(each.frame.image[0, 0, 0]) // 10 for each in seen] == [1, 2, *range(4, 12)]
        assert [each.frame.index for each in seen if each.begins] == [1, 4]
        with pytest.raises(DataError, match=r"frame_0\.png: 0 bytes that are neither JPEG nor PNG"):
            list(open_source(folder, vehicle=CAR, policy=Policy(on_bad="refuse")))

    def test_files_of_other_systems_are_no_frames(self, folder: Path) -> None:
        for name in ("._frame_3.png", "Thumbs.db"):
            (folder / name).write_bytes(b"\0\5\x16\7")
        assert len(opened(folder)) == len(list(opened(folder))) == 12


class TestVideo:
    @pytest.fixture
    def video(self, tmp_path: Path) -> Path:
        path = tmp_path / "clip.mp4"
        with open_sink(
            path, height=48, width=64, frame_rate=Fraction(30000, 1001), encoding=Encoding(crf=5)
        ) as sink:
            for number in range(30):
                sink.write(np.full((48, 64, 3), 5 * number, np.uint8))
        return path

    def test_it_plays_at_its_own_rate(self, video: Path) -> None:
        source = opened(video)
        assert source.kind == "video"
        assert float(source.frame_rate) == pytest.approx(30000 / 1001, rel=1e-4)
        assert [round(seen.frame.image.mean() / 5) for seen in source] == list(range(30))
        assert source.vehicle == CAR

    def test_a_clip_of_it(self, video: Path) -> None:
        assert [round(seen.frame.image.mean() / 5) for seen in opened(video, start_s=0.5, end_s=0.65)] == [
            15,
            16,
            17,
            18,
            19,
        ]

    def test_a_file_that_is_no_video(self, tmp_path: Path) -> None:
        (tmp_path / "v.mp4").write_bytes(b"\0" * 100)
        with pytest.raises(DataError, match=r"v\.mp4"):
            opened(tmp_path / "v.mp4")


class TestSelection:
    def test_a_path_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such file or folder"):
            opened(tmp_path / "nothing")

    def test_a_folder_that_nobody_knows(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("?")
        with pytest.raises(DataError, match="no reader recognises"):
            opened(tmp_path)

    def test_a_clip_beyond_the_end(self, recording: Path) -> None:
        with pytest.raises(DataError, match=r"no frame in 100 s to .* the drive lasts 1\.[78] s"):
            opened(recording, start_s=100.0)

    @pytest.mark.parametrize("times", [(-1.0, None), (2.0, 1.0), (1.0, 1.0)])
    def test_times_that_make_no_clip(self, times: tuple[float, float | None]) -> None:
        with pytest.raises(DataError, match="expected 0 <= start < end"):
            Selection(start_s=times[0], end_s=times[1])

    def test_one_of_several_drives_has_to_be_chosen(
        self, recording: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = sources.READERS["udacity-csv"](recording)[0]
        both = [one, Drive(**{**vars(one), "name": "drive-b"})]
        monkeypatch.setattr(sources, "READERS", {"udacity-csv": lambda path: both})
        with pytest.raises(DataError, match=r"holds 2 drives \(drive-a, drive-b\); choose one"):
            opened(recording)
        assert opened(recording, drive="drive-b").drive == "drive-b"
        with pytest.raises(DataError, match="has no drive 'drive-c'"):
            opened(recording, drive="drive-c")

    def test_a_reader_of_single_images_reads_no_drive(self, recording: Path) -> None:
        with pytest.raises(DataError, match="no drive; try image-folder"):
            opened(recording, reader="bdd-oia")


class CountingImages:
    """Makes images when asked, and counts them."""

    def __init__(self) -> None:
        self.made = 0

    def read(self, start: int, stop: int) -> Iterator[np.ndarray]:
        for _ in range(start, stop):
            self.made += 1
            yield np.zeros((8, 8, 3), np.uint8)


def test_images_are_read_one_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = CountingImages()
    times = np.arange(100_000, dtype=np.int64) * PERIOD_NS
    # Two stamps that swapped places: one of the frames is left out, the reading goes on behind it.
    times[[50, 51]] = times[[51, 50]]
    signal = Signal(time_ns=times[::2].copy(), value=np.linspace(0, 1, 50_000))
    drive = Drive(
        name="long",
        source="made",
        camera="center",
        vehicle=CAR,
        time_ns=times,
        images=images,
        steering_wheel=signal,
    )
    monkeypatch.setattr(sources, "READERS", {"video": lambda path: [drive]})
    indexes = []
    for seen in opened(tmp_path, reader="video"):
        indexes.append(seen.frame.index)
        assert images.made == len(indexes)
        if len(indexes) == 60:
            break
    assert len(set(range(61)) - set(indexes)) == 1
    assert {50, 51} - set(indexes)


@pytest.mark.parametrize("rate", [Fraction(20), Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001)])
def test_a_rate_is_measured_exactly_despite_rounded_stamps_and_a_hole(rate: Fraction) -> None:
    times = np.array([round(number * 10**9 / rate) for number in range(200)], dtype=np.int64)
    times[100:] += 5_000_000_000
    assert measured_rate(times) == rate


def test_a_rate_that_no_video_has_is_refused() -> None:
    with pytest.raises(DataError, match=r"frames are 3600 s apart; a replay needs 0.01 to 1000 a second"):
        measured_rate(np.arange(3) * 3600 * 10**9)


def test_names_of_images_are_read_as_a_person_reads_them(tmp_path: Path) -> None:
    for name in ("area_1²10.png", "area_1²9.png", "._area_1²9.png", "²7.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert sources._images_in(tmp_path) == ["area_1²9.png", "area_1²10.png", "²7.png"]
