"""H.264 files: what a player needs of them, and that they are whole or absent."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from driving_xai.errors import VideoError
from driving_xai.replay import sink as sinks
from driving_xai.replay.sink import Encoding, bounded_rate, open_sink, require_encoder

BARS = ((255, 255, 255), (255, 168, 46), (77, 208, 255), (200, 30, 30), (20, 120, 40), (12, 14, 18))


def bars(height: int = 96, width: int = 192) -> np.ndarray:
    """Wide bars of the colours that overlays use."""
    which = np.minimum(np.arange(width) * len(BARS) // width, len(BARS) - 1)
    return np.broadcast_to(np.array(BARS, np.uint8)[which], (height, width, 3)).copy()


def write(path: Path, pictures: list[np.ndarray], rate: Fraction = Fraction(20), **options: object) -> None:
    height, width = pictures[0].shape[:2]
    comment = str(options.pop("comment", ""))
    encoding = Encoding(**options)  # type: ignore[arg-type]
    with open_sink(
        path, height=height, width=width, frame_rate=rate, encoding=encoding, comment=comment
    ) as sink:
        for picture in pictures:
            sink.write(picture)


@pytest.mark.parametrize("rate", [Fraction(20), Fraction(30000, 1001), Fraction(1000, 77)])
def test_every_frame_is_there_at_its_time(tmp_path: Path, rate: Fraction) -> None:
    pictures = [np.full((64, 96, 3), 40 + 4 * number, np.uint8) for number in range(40)]
    write(tmp_path / "v.mp4", pictures, rate)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == rate
        frames = list(container.decode(stream))
    assert len(frames) == 40
    for number, frame in enumerate(frames):
        assert frame.time == pytest.approx(float(number / rate), abs=1e-3)
        assert frame.to_ndarray(format="gray").mean() == pytest.approx(40 + 4 * number, abs=2)


@pytest.mark.parametrize("most_mb", [0.06, 0.2])
def test_a_film_of_noise_stays_below_its_size(tmp_path: Path, most_mb: float) -> None:
    """What compresses worst; at the quality of the default it has twice the larger limit."""
    draw, rate = np.random.default_rng(0), Fraction(20)
    pictures = [draw.integers(0, 255, (96, 128, 3), dtype=np.uint8) for _ in range(60)]
    bound = bounded_rate(most_mb, 3.0, height=96, width=128, rate=rate)
    write(tmp_path / "free.mp4", pictures)
    write(tmp_path / "bounded.mp4", pictures, most_bits_per_s=bound)
    free, bounded = ((tmp_path / name).stat().st_size / 1e6 for name in ("free.mp4", "bounded.mp4"))
    assert free > 2 * 0.2
    assert 0.3 * most_mb < bounded < most_mb


def test_a_limit_that_costs_nothing_changes_no_picture(tmp_path: Path) -> None:
    pictures = [bars()] * 20
    write(tmp_path / "free.mp4", pictures)
    write(tmp_path / "bounded.mp4", pictures, most_bits_per_s=10**8)
    decoded = []
    for name in ("free.mp4", "bounded.mp4"):
        with av.open(str(tmp_path / name)) as container:
            decoded.append([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    np.testing.assert_allclose(decoded[0], decoded[1], atol=8)


def test_a_limit_that_would_show_nothing_is_refused_with_what_would_do() -> None:
    with pytest.raises(
        VideoError, match=r"60 s of 1920x1080 pixels cannot be kept below 1 MB; allow 1\.4 MB"
    ):
        bounded_rate(1.0, 60.0, height=1080, width=1920, rate=Fraction(20))


def test_pictures_of_a_variable_rate_are_shown_at_their_times(tmp_path: Path) -> None:
    """Rates of a phone: 20 pictures at 30 a second, 40 at 10; and one at the nanosecond of another."""
    starts = np.cumsum([0, *[33_333_333] * 20, *[100_000_000] * 38, 1])
    path = tmp_path / "v.mp4"
    with open_sink(
        path, height=64, width=96, frame_rate=Fraction(10), constant=False, encoding=Encoding()
    ) as sink:
        for start in starts.tolist():
            sink.write(bars(64, 96), at_ns=5 * 10**9 + start, for_ns=250_000_000)
        assert sink.starts_s == pytest.approx(starts / 1e9, abs=1e-4)
    with av.open(str(path)) as container:
        assert float(container.duration / 1e6) == pytest.approx(starts[-1] / 1e9 + 0.25, abs=2e-3)
        found = [float(frame.time) for frame in container.decode(video=0)]
    np.testing.assert_allclose(found, starts / 1e9, atol=1e-4)
    assert np.all(np.diff(found) > 0)


def test_a_browser_can_play_it(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    write(path, [bars()] * 5)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    data = path.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat"), "the index comes first: playing starts while loading"


def test_colours_come_back_as_a_player_undoes_them(tmp_path: Path) -> None:
    write(tmp_path / "v.mp4", [bars()] * 3, crf=10)
    with av.open(str(tmp_path / "v.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (6, 1), "BT.601 in limited range, and it says so"
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    middles = [round((number + 0.5) * 192 / len(BARS)) for number in range(len(BARS))]
    np.testing.assert_allclose(picture[48, middles].astype(int), BARS, atol=5)


def test_odd_sides_get_their_last_row_and_column_once_more(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8).repeat(13, 0).repeat(13, 1)
    assert picture.shape == (65, 91, 3)
    write(tmp_path / "v.mp4", [picture], crf=0)
    with av.open(str(tmp_path / "v.mp4")) as container:
        found = next(container.decode(video=0)).to_ndarray(format="gray").astype(int)
    assert found.shape == (66, 92)
    np.testing.assert_allclose(found[65], found[64], atol=6)
    np.testing.assert_allclose(found[:, 91], found[:, 90], atol=6)


def test_provenance_travels_in_the_file(tmp_path: Path) -> None:
    write(tmp_path / "v.mp4", [bars()], comment='{"checkpoint": "ab12"}')
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.metadata["comment"] == '{"checkpoint": "ab12"}'


def test_one_can_seek_every_two_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write(tmp_path / "v.mp4", [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(100)])
    with av.open(str(tmp_path / "v.mp4")) as container:
        keys = [packet.pts * packet.time_base for packet in container.demux(video=0) if packet.is_keyframe]
    assert np.diff([float(key) for key in keys]).max() <= 2.0


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_nothing_new_and_nothing_changed(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"an earlier video")

    def work() -> None:
        with open_sink(path, height=96, width=192, frame_rate=Fraction(20), encoding=Encoding()) as sink:
            sink.write(bars())
            raise error

    with pytest.raises(error):
        work()
    assert [each.name for each in tmp_path.iterdir()] == ["v.mp4"]
    assert path.read_bytes() == b"an earlier video"


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="one size a video"):
        write(tmp_path / "v.mp4", [bars(96, 192), bars(96, 190)])
    assert not list(tmp_path.iterdir())


def test_a_video_without_pictures_is_none(tmp_path: Path) -> None:
    with (
        pytest.raises(VideoError, match="no picture came"),
        open_sink(tmp_path / "v.mp4", height=96, width=192, frame_rate=Fraction(20), encoding=Encoding()),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_only_mp4_is_written(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"end it in \.mp4"):
        write(tmp_path / "v.avi", [bars()])


def test_a_folder_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").mkdir()
    with pytest.raises(OSError, match=r"v\.mp4"):
        write(tmp_path / "v.mp4", [bars()])
    assert [each.name for each in tmp_path.iterdir()] == ["v.mp4"]


def test_a_missing_encoder_is_found_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    require_encoder()
    monkeypatch.setattr(sinks, "ENCODER", "no-such-encoder")
    with pytest.raises(VideoError, match="install av from its wheel"):
        require_encoder()


@pytest.mark.parametrize("options", [{"preset": "quick"}, {"crf": 60}, {"crf": -1}, {"keyframe_s": 0}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Encoding(**options)  # type: ignore[arg-type]
