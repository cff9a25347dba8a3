"""A replay from source to files."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import torch

from data_prep.lock import exclusive
from data_prep.prepare import PrepConfig, prepare
from data_prep.shards.atomic import sha256_of
from data_prep.shards.manifest import Manifest
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import (
    CheckpointError,
    DataError,
    NonFiniteError,
    UnsupportedModelError,
    VideoError,
)
from driving_xai.evaluation.results import Results
from driving_xai.explain.registry import METHODS, fitted
from driving_xai.replay import player, window
from driving_xai.replay.background import StageTimes
from driving_xai.replay.config import ReplayConfig
from driving_xai.replay.player import replay
from driving_xai.replay.sink import VideoSink
from driving_xai.replay.tasks import steering

from .conftest import FRAMES, HOLE_AFTER

FAST = {"preset": "ultrafast", "crf": 28}


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def names(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*"))


def test_a_strip_of_a_few_rows_is_refused_and_takes_no_gigabytes(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "strip").mkdir()
    for number in range(4):
        cv2.imwrite(str(tmp_path / "strip" / f"{number}.png"), np.full((2, 4096, 3), 40 * number, np.uint8))
    with pytest.raises(DataError, match=r"frames of 4096 x 2 px are too thin to draw on.*16 times the other"):
        replay(checkpoint, tmp_path / "strip", tmp_path / "out.mp4", ReplayConfig(**FAST, score=False))


def test_a_recording_becomes_a_video_with_its_scores(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path
) -> None:
    progress: list[tuple[int, int]] = []
    times = StageTimes()
    done = replay(
        checkpoint,
        recording,
        tmp_path / "out" / "drive.mp4",
        ReplayConfig(**FAST),
        on_progress=lambda at, total: progress.append((at, total)),
        times=times,
    )
    assert names(tmp_path / "out") == [
        "drive.mp4",
        "drive.scores",
        "drive.scores/per_frame.parquet",
        "drive.scores/results.json",
    ]
    assert progress == [(number, FRAMES) for number in range(1, FRAMES + 1)]
    assert set(times.seconds) == {"decode", "model", "explain", "score", "draw", "encode"}
    seen = pictures(done.video)
    assert len(seen) == done.frames == FRAMES
    assert seen[0].shape == (480, 640, 3), "96x128 enlarged five times"
    results = Results.load(done.scores)
    summary = results.summary
    assert summary == done.summary
    assert summary["data"] == {
        "drives": ["drive-a"],
        "runs": 2,
        "frames": FRAMES,
        "scored": FRAMES - 2,
        "dropped": {},
        "seconds_apart": 0.05,
    }
    assert summary["video"]["sha256"] == sha256_of(done.video)
    assert summary["plan"]["checkpoint_sha256"] == checkpoint.sha256
    assert summary["plan"]["config"]["method"] == "sign-attention", "the model's own, as none was asked for"
    own = results.select(method="sign-attention", measure="deletion", reference="truth")
    assert own["frame"].tolist() == [n for n in range(FRAMES) if n not in (0, HOLE_AFTER)]
    assert len(own["curve"].iloc[0]) == 26
    with av.open(str(done.video)) as container:
        assert json.loads(container.metadata["comment"])["checkpoint_sha256"] == checkpoint.sha256


def test_what_runs_is_said_before_it_does_and_whether_it_is_too_short(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    how = ReplayConfig(**FAST, block_s=0.05, control_every=1)
    replay(checkpoint, recording, tmp_path / "a.mp4", how, on_start=said.append)
    assert len(said) == 1
    assert f"{FRAMES} frames" in said[0]
    assert "explained by sign-attention on cpu, scored against a random order" in said[0]
    said.clear()
    replay(checkpoint, recording, tmp_path / "b.mp4", ReplayConfig(**FAST, end_s=0.5), on_start=said.append)
    assert said[1].startswith("too short for a verdict: it takes more than 40 s of driving (8 blocks of 5 s)")
    said.clear()
    sparse = ReplayConfig(**FAST, block_s=0.05)
    replay(checkpoint, recording, tmp_path / "c.mp4", sparse, on_start=said.append)
    assert "more than 4 s of driving (8 blocks of 0.5 s)" in said[1], (
        "a control on every tenth of 20 frames a second"
    )


def test_the_same_replay_gives_the_same_bytes(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for out in outs:
        # Threads of x264 do not change what it writes.
        replay(checkpoint, recording, out, ReplayConfig(**FAST, end_s=0.5))
    assert outs[0].read_bytes() == outs[1].read_bytes()
    rows = [(out.with_suffix(".scores") / "per_frame.parquet").read_bytes() for out in outs]
    assert rows[0] == rows[1]


def test_shards_play_like_the_recording_they_were_made_of(
    checkpoint: Checkpoint, recording: Path, shards: Path, tmp_path: Path
) -> None:
    tables = [
        Results.load(
            replay(checkpoint, source, tmp_path / f"{name}.mp4", ReplayConfig(**FAST)).scores
        ).per_frame
        for name, source in (("raw", recording), ("shards", shards))
    ]
    assert tables[0].drop(columns="curve").equals(tables[1].drop(columns="curve"))
    assert pictures(tmp_path / "shards.mp4")[0].shape == (480, 960, 3)


def test_without_scores_there_is_a_video_only(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path
) -> None:
    done = replay(checkpoint, recording, tmp_path / "v.mp4", ReplayConfig(**FAST, score=False, end_s=0.3))
    assert names(tmp_path) == ["v.mp4"]
    assert (done.scores, done.summary, done.frames) == (None, None, 6)


# Hundreds of passes a frame.
SLOW_METHODS = {"smoothgrad", "integrated-gradients", "occlusion", "rise", "lime"}


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_METHODS else []) for name in METHODS],
)
def test_every_method_that_fits_the_model_plays(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path, method: str
) -> None:
    try:
        fitted(method, checkpoint.model)
    except UnsupportedModelError as reason:
        pytest.skip(str(reason))
    config = ReplayConfig(**FAST, method=method, end_s=0.2)
    done = replay(checkpoint, recording, tmp_path / "v.mp4", config)
    assert done.summary["plan"]["config"]["methods"] == [method]
    assert not any(parameter.grad is not None for parameter in checkpoint.model.parameters())
    assert not checkpoint.model.training


def test_an_unlabelled_video_is_scored_against_the_clean_prediction(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path
) -> None:
    replay(checkpoint, recording, tmp_path / "first.mp4", ReplayConfig(**FAST, score=False, end_s=0.5))
    done = replay(checkpoint, tmp_path / "first.mp4", tmp_path / "second.mp4", ReplayConfig(**FAST))
    scores = {(each["method"], each["reference"]): each for each in done.summary["scores"]}
    assert scores["sign-attention", "clean"]["frames"] == 7
    assert scores["sign-attention", "truth"]["value"]["mean"] is None


def test_a_curve_against_the_driver_needs_a_driver(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"center: does not say how the car was steered; draw the curve"):
        replay(checkpoint, recording / "center", tmp_path / "v.mp4", ReplayConfig(**FAST, reference="truth"))


def test_the_weights_are_untouched(checkpoint: Checkpoint, recording: Path, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    replay(checkpoint, recording, tmp_path / "v.mp4", ReplayConfig(**FAST, method="grad-cam", end_s=0.2))
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class TestFailures:
    @pytest.fixture
    def earlier(self, checkpoint: Checkpoint, recording: Path, tmp_path: Path) -> dict[str, bytes]:
        """An earlier replay under the same name."""
        replay(checkpoint, recording, tmp_path / "v.mp4", ReplayConfig(**FAST, end_s=0.2))
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    @staticmethod
    def unchanged(folder: Path, earlier: dict[str, bytes]) -> bool:
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == earlier

    def test_ctrl_c_leaves_nothing_half_written(
        self, checkpoint: Checkpoint, recording: Path, tmp_path: Path, earlier: dict[str, bytes]
    ) -> None:
        def interrupt(at: int, total: int) -> None:
            if at == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            replay(checkpoint, recording, tmp_path / "v.mp4", ReplayConfig(**FAST), on_progress=interrupt)
        assert self.unchanged(tmp_path, earlier)
        assert not [each for each in threading.enumerate() if each.name.startswith("replay-")]

    @pytest.fixture
    def broken(self, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The recording with one image that is cut short."""
        broken = tmp_path_factory.mktemp("broken") / "drive"
        (broken / "center").mkdir(parents=True)
        for number, path in enumerate(sorted((recording / "center").iterdir())):
            data = path.read_bytes()
            (broken / "center" / path.name).write_bytes(data if number != 9 else data[:100])
        (broken / "angles.csv").write_bytes((recording / "angles.csv").read_bytes())
        return broken

    def test_a_frame_that_cannot_be_read_is_left_out_and_counted(
        self, checkpoint: Checkpoint, broken: Path, tmp_path: Path
    ) -> None:
        done = replay(checkpoint, broken, tmp_path / "v.mp4", ReplayConfig(**FAST))
        assert (done.frames, done.dropped) == (FRAMES - 1, {"undecodable_image": 1})
        results = Results.load(done.scores)
        assert results.summary["data"]["dropped"] == {"undecodable_image": 1}
        assert results.summary["data"]["runs"] == 3, "what the model remembers ends there"
        own = results.select(method="sign-attention", measure="deletion", reference="truth")
        assert own["frame"].tolist() == [n for n in range(FRAMES) if n not in (0, HOLE_AFTER, 9, 10)]
        starts = [round(frame.time * 20) for frame in av.open(str(done.video)).decode(video=0)]
        assert starts == [n for n in range(FRAMES) if n != 9], "the picture before it is shown until the next"
        assert results.summary["video"]["starts_s"] == [n / 20 for n in starts]
        assert results.summary["video"]["run_starts"] == [0, HOLE_AFTER, 9]

    def test_a_frame_that_cannot_be_read_stops_it_where_that_is_asked(
        self, checkpoint: Checkpoint, broken: Path, tmp_path: Path, earlier: dict[str, bytes]
    ) -> None:
        with pytest.raises(DataError, match=r"\.jpg: 100 bytes without a JPEG header"):
            replay(checkpoint, broken, tmp_path / "v.mp4", ReplayConfig(**FAST, on_bad="refuse"))
        assert self.unchanged(tmp_path, earlier)

    def test_a_disk_that_is_full_stops_it(
        self, checkpoint: Checkpoint, recording: Path, tmp_path: Path, earlier: dict[str, bytes], monkeypatch
    ) -> None:
        def full(self: object, picture: np.ndarray, **when: int) -> None:
            raise VideoError("the video cannot be written (No space left on device); check the free space")

        monkeypatch.setattr("driving_xai.replay.sink.VideoSink.write", full)
        with pytest.raises(VideoError, match="No space left"):
            replay(checkpoint, recording, tmp_path / "v.mp4", ReplayConfig(**FAST))
        assert self.unchanged(tmp_path, earlier)

    def test_a_new_replay_replaces_the_old_one(
        self, checkpoint: Checkpoint, recording: Path, tmp_path: Path, earlier: dict[str, bytes]
    ) -> None:
        done = replay(checkpoint, recording, tmp_path / "v.mp4", ReplayConfig(**FAST, end_s=0.4))
        assert Results.load(done.scores).summary["data"]["frames"] == 8
        assert not self.unchanged(tmp_path, earlier)

    def test_shards_cut_otherwise_do_not_fit(
        self, checkpoint: Checkpoint, recording: Path, tmp_path: Path
    ) -> None:
        prepare(PrepConfig(reader="udacity-csv", source=recording, split="test"), tmp_path / "other")
        with pytest.raises(DataError, match="is not the checkpoint's"):
            replay(checkpoint, tmp_path / "other", tmp_path / "v.mp4", ReplayConfig(**FAST))

    def test_a_checkpoint_that_does_not_say_its_geometry(
        self, checkpoint: Checkpoint, recording: Path, tmp_path: Path
    ) -> None:
        silent = SimpleNamespace(
            **vars(checkpoint) | {"config": {"kind": "steering", "input": {}}, "kind": "steering"}
        )
        with pytest.raises(CheckpointError, match="does not say how its frames were cut"):
            replay(silent, recording, tmp_path / "v.mp4")

    def test_no_encoder_is_told_before_the_source_is_opened(
        self, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("driving_xai.replay.sink.ENCODER", "no-such-encoder")
        with pytest.raises(VideoError, match="no-such-encoder"):
            replay(checkpoint, tmp_path / "missing", tmp_path / "v.mp4")

    def test_a_window_without_a_display(
        self, checkpoint: Checkpoint, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        monkeypatch.setattr("sys.platform", "linux")
        with pytest.raises(VideoError, match="no display for --show"):
            replay(checkpoint, recording, tmp_path / "v.mp4", ReplayConfig(**FAST), show=True)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "options",
        [
            {"method": "tea-leaves"},
            {"fill": "pink"},
            {"reference": "both"},
            {"split": "held"},
            {"preset": "quick"},
            {"control_every": 0},
            {"block_s": 0.0},
            {"block_s": float("nan")},
            {"seed": -1},
            {"seed": 2**32},
            {"frame_rate": 0.0},
            {"crf": 99},
        ],
    )
    def test_an_option_out_of_range_says_what_is_possible(self, options: dict[str, object]) -> None:
        with pytest.raises(ValueError, match="expected"):
            ReplayConfig(**options)  # type: ignore[arg-type]


def test_closing_the_window_ends_the_video_early_and_whole(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[np.ndarray] = []

    class FakeWindow:
        def __enter__(self) -> FakeWindow:
            return self

        def __exit__(self, *error: object) -> None:
            self.refreshed = 0

        def offer(self, picture: np.ndarray) -> None:
            shown.append(picture)

        def refresh(self) -> bool:
            self.calls = getattr(self, "calls", 0) + 1
            return self.calls < 7

    monkeypatch.setattr(player, "Window", FakeWindow)
    done = replay(checkpoint, recording, tmp_path / "v.mp4", ReplayConfig(**FAST), show=True)
    assert done.frames == len(pictures(done.video)) == len(shown) == 7
    assert Results.load(done.scores).summary["data"]["frames"] == 7
    assert shown[0].shape == (480, 640, 3)


def test_a_window_shows_the_newest_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    key = [-1]
    monkeypatch.setenv("DISPLAY", ":0")
    for name, fake in {
        "namedWindow": lambda *args: None,
        "imshow": lambda title, picture: shown.append(int(picture[0, 0, 2])),
        "waitKey": lambda wait: key[0],
        "destroyWindow": lambda title: None,
    }.items():
        monkeypatch.setattr(window.cv2, name, fake)
    with window.Window() as screen:
        assert screen.refresh()
        for red in (10, 20):
            screen.offer(np.full((4, 4, 3), (red, 0, 0), np.uint8))
        assert screen.refresh()
        assert screen.refresh()
        assert shown == [20]
        key[0] = ord("q")
        assert not screen.refresh()


def test_frames_of_the_models_own_shards_say_how_they_were_seen(
    make_checkpoint: Callable[..., Checkpoint], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_checkpoint(data={"shards_sha256": Manifest.load(shards).sha256, "held_out": {}})
    captions: list[str] = []
    original = steering.caption_of
    monkeypatch.setattr(steering, "caption_of", lambda seen: captions.append(original(seen)) or captions[-1])
    replay(own, shards, tmp_path / "v.mp4", ReplayConfig(**FAST, end_s=0.2))
    assert captions[2] == "drive-a · held out · frame 2 · 0.10 s"


def test_pictures_are_not_kept(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the encoder, few frames wait: memory does not grow with the drive."""
    encoded, ahead_of_encoder = [0], []
    write = VideoSink.write

    def slow(self: VideoSink, picture: np.ndarray, **when: int) -> None:
        threading.Event().wait(0.02)
        write(self, picture, **when)
        encoded[0] += 1

    monkeypatch.setattr(VideoSink, "write", slow)
    monkeypatch.setattr(player, "_DEPTH", 2)
    replay(
        checkpoint,
        recording,
        tmp_path / "v.mp4",
        ReplayConfig(**FAST, score=False),
        on_progress=lambda at, total: ahead_of_encoder.append(at - encoded[0]),
    )
    assert max(ahead_of_encoder) <= 2 + 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_that_is_no_number_stops_it(
    make_checkpoint: Callable[..., Checkpoint], recording: Path, tmp_path: Path, value: float
) -> None:
    broken = make_checkpoint()
    broken.model.target_scale.fill_(value)
    with pytest.raises(NonFiniteError, match="frame 0: its prediction is NaN or infinite"):
        replay(broken, recording, tmp_path / "v.mp4", ReplayConfig(**FAST, end_s=0.2))
    assert not list(tmp_path.iterdir())


class TestTwoOfOneName:
    def test_a_second_replay_of_the_name_is_refused(
        self, checkpoint: Checkpoint, recording: Path, tmp_path: Path
    ) -> None:
        fast = ReplayConfig(**FAST, score=False, end_s=0.2)
        with (
            exclusive(tmp_path, file=".v.mp4.lock"),
            pytest.raises(DataError, match="another run is writing here"),
        ):
            replay(checkpoint, recording, tmp_path / "v.mp4", fast)
        with exclusive(tmp_path, file=".v.mp4.lock"):
            replay(checkpoint, recording, tmp_path / "other.mp4", fast)
        assert names(tmp_path) == ["other.mp4"]

    def test_what_a_killed_one_left_is_removed(
        self, checkpoint: Checkpoint, recording: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "v.scores").mkdir()
        left = (
            tmp_path / "v.mp4.host-1.driving-xai.tmp",
            tmp_path / "v.scores" / "per_frame.parquet.host-1.driving-xai.tmp",
        )
        kept = tmp_path / "w.mp4.host-1.driving-xai.tmp"
        for path in (*left, kept):
            path.write_bytes(b"half")
        replay(checkpoint, recording, tmp_path / "v.mp4", ReplayConfig(**FAST, end_s=0.2))
        assert not any(path.exists() for path in left)
        assert kept.exists(), "another name may be at work"

    def test_a_folder_that_cannot_be_written(
        self, checkpoint: Checkpoint, recording: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(VideoError, match=r"cannot be written \("):
            replay(checkpoint, recording, tmp_path / "file" / "v.mp4", ReplayConfig(**FAST, score=False))


KILLED = """
import signal
import sys
import time
from pathlib import Path
from driving_xai import checkpoint
from driving_xai.replay.config import ReplayConfig
from driving_xai.replay.player import replay

def tell(at, total):
    print(at, flush=True)
    if at == 5:
        time.sleep(60)  # Until the signal comes, however busy the machine is.

# Whoever runs the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
config = ReplayConfig(fill="mean", control_every=2, method="gradient-x-input")
replay(checkpoint.load(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]), config, on_progress=tell)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_replay_leaves_nothing_under_its_names_and_the_next_is_whole(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    out = tmp_path / "v.mp4"
    command = [sys.executable, "-c", KILLED, str(checkpoint.path), str(recording), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    while process.stdout.readline() != "5\n":
        assert process.poll() is None
    process.send_signal(sent)
    process.communicate(timeout=60)
    left = names(tmp_path)
    assert not {"v.mp4", "v.scores/results.json", "v.scores/per_frame.parquet"} & set(left)
    assert sent == signal.SIGKILL or not left
    done = replay(checkpoint, recording, out, ReplayConfig(**FAST, method="gradient-x-input"))
    assert names(tmp_path) == ["v.mp4", "v.scores", "v.scores/per_frame.parquet", "v.scores/results.json"]
    assert len(pictures(done.video)) == FRAMES
