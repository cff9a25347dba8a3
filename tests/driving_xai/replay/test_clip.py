"""Clips to share: as large as fits, at their own speed, and refused in one line where nothing fits."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.lock import exclusive_file
from driving_xai.errors import DataError, OptionError, VideoError
from driving_xai.replay.clip import write_clip
from driving_xai.replay.sink import Encoding, open_sink


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second and a half of noise at 20 a second: it does not compress. A bright bar moves to the right."""
    path = tmp_path_factory.mktemp("video") / "drive.mp4"
    draw = np.random.default_rng(0)
    with open_sink(path, height=90, width=700, frame_rate=Fraction(20), encoding=Encoding(crf=8)) as sink:
        for number in range(30):
            picture = draw.integers(0, 120, (90, 700, 3), dtype=np.uint8)
            picture[:, 20 * number : 20 * number + 40] = 255
            sink.write(picture)
    return path


def pictures(path: Path) -> tuple[list[np.ndarray], list[int]]:
    frames, durations = [], []
    with Image.open(path) as opened:
        for number in range(opened.n_frames):
            opened.seek(number)
            frames.append(np.asarray(opened.convert("RGB")))
            durations.append(opened.info["duration"])
    return frames, durations


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_clip_shows_the_video_at_its_own_speed(video: Path, tmp_path: Path, suffix: str) -> None:
    frames, durations = pictures(write_clip(video, tmp_path / f"clip{suffix}", most_mb=50))
    assert len(frames) == 15, "ten a second"
    assert sum(durations) == 1500
    assert frames[0].shape == (82, 640, 3)
    bright = [int(np.argmax(frame.astype(float).mean((0, 2)))) for frame in frames]
    assert bright == sorted(bright)
    assert bright[-1] > bright[0] + 400


def test_a_smaller_clip_is_made_where_the_first_does_not_fit(video: Path, tmp_path: Path) -> None:
    whole = write_clip(video, tmp_path / "whole.gif", most_mb=50).stat().st_size / 1e6
    small = write_clip(video, tmp_path / "small.gif", most_mb=whole / 2)
    assert small.stat().st_size / 1e6 <= whole / 2
    assert pictures(small)[0][0].shape[1] < 640


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize(
    "rate",
    ["30000/1001", "7", "60", *(pytest.param(each, marks=pytest.mark.slow) for each in ("24", "25", "2"))],
)
def test_each_picture_is_shown_at_its_own_time_whatever_the_rate(
    tmp_path: Path, suffix: str, rate: str
) -> None:
    every, tick_ms = Fraction(rate), 10 if suffix == ".gif" else 1
    path = tmp_path / "drive.mp4"
    with open_sink(path, height=32, width=32, frame_rate=every, encoding=Encoding()) as sink:
        for number in range(50):
            sink.write(np.full((32, 32, 3), 5 * number, dtype=np.uint8))
    frames, durations = pictures(write_clip(path, tmp_path / f"clip{suffix}"))
    assert abs(sum(durations) - 1000 * float(50 / every)) <= tick_ms, "rounding adds up to no drift"
    starts = np.cumsum([0, *durations[:-1]])
    shown = [round(float(frame.mean()) / 5) for frame in frames]
    for number, start in zip(shown, starts, strict=True):
        assert abs(start - 1000 * float(number / every)) <= tick_ms
    assert np.diff(starts).min() >= 1000 / 10 - float(1000 / every) - tick_ms


def test_pictures_that_come_at_odd_times_keep_them(tmp_path: Path) -> None:
    path, starts_ms = tmp_path / "drive.mp4", [0, 40, 400, 410, 1400]
    with open_sink(
        path, height=32, width=32, frame_rate=Fraction(20), constant=False, encoding=Encoding()
    ) as sink:
        for number, at_ms in enumerate(starts_ms):
            sink.write(
                np.full((32, 32, 3), 50 * number, dtype=np.uint8), at_ns=at_ms * 10**6, for_ns=300 * 10**6
            )
    frames, durations = pictures(write_clip(path, tmp_path / "clip.gif"))
    assert [round(float(frame.mean()) / 50) for frame in frames] == [0, 2, 4]
    assert durations == [400, 1000, 300]


def test_a_clip_says_how_far_it_is_and_is_written_by_one_run_only(video: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "clip.gif"
    write_clip(video, out, most_mb=50, on_progress=lambda *at: seen.append(at))
    assert seen == [(number, 15) for number in range(1, 16)]
    before = out.read_bytes()
    with exclusive_file(out), pytest.raises(DataError, match="another run is writing here"):
        write_clip(video, out)
    assert out.read_bytes() == before


@pytest.mark.parametrize("most_mb", [float("nan"), float("inf"), 0.0, -1.0])
def test_no_clip_is_that_small(video: Path, tmp_path: Path, most_mb: float) -> None:
    with pytest.raises(OptionError, match="expected a number over 0"):
        write_clip(video, tmp_path / "clip.gif", most_mb=most_mb)
    assert not list(tmp_path.iterdir())


def test_what_cannot_fit_leaves_nothing(video: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"even at 240 pixels the clip has .* render a shorter part"):
        write_clip(video, tmp_path / "clip.gif", most_mb=0.01)
    with pytest.raises(OptionError, match=r"ends in \.gif or \.webp"):
        write_clip(video, tmp_path / "clip.avi")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match="cannot be read"):
        write_clip(tmp_path / "broken.mp4", tmp_path / "clip.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.mp4"]
