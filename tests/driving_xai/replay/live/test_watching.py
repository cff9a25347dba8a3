"""A drive for viewers only: the same pictures as the video's, from any place, by any method."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from driving_xai.checkpoint import Checkpoint
from driving_xai.cli import app
from driving_xai.replay.background import Consumer
from driving_xai.replay.config import ReplayConfig
from driving_xai.replay.live.control import FrameStats, Live
from driving_xai.replay.live.watching import watch
from driving_xai.replay.methods import fitting_methods
from driving_xai.replay.player import replay
from driving_xai.types import Outputs
from tests.driving_xai.replay.conftest import FRAMES


class Watched(Live):
    """Keeps what was shown, and is never without a viewer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[np.ndarray, FrameStats]] = []
        self.came = threading.Condition()

    def show(self, picture: np.ndarray, stats: FrameStats, **more: Any) -> None:
        self._asked_s = float("inf")
        super().show(picture, stats, **more)
        with self.came:
            self.seen.append((picture, stats))
            self.came.notify_all()

    def until(self, frame: int, *, after: int = 0) -> tuple[np.ndarray, FrameStats]:
        """Waits until a frame is shown, and returns it."""
        with self.came:
            assert self.came.wait_for(lambda: any(r.frame == frame for _, r in self.seen[after:]), 60)
            return next(each for each in self.seen[after:] if each[1].frame == frame)


@pytest.fixture
def watched(checkpoint: Checkpoint, recording: Path) -> Iterator[Watched]:
    """A recording that is watched in a thread."""
    live = Watched()
    thread = threading.Thread(target=watch, args=(checkpoint, recording, live, ReplayConfig(batch_size=1)))
    thread.start()
    yield live
    live.close()
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def written(checkpoint: Checkpoint, recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """What a replay that writes a video shows."""
    live = Watched()
    replay(
        checkpoint,
        recording,
        tmp_path_factory.mktemp("w") / "v.mp4",
        # Frames of a file are encoded together, those of a viewer one by one.
        ReplayConfig(preset="ultrafast", batch_size=1),
        live=live,
    )
    return live


def test_viewers_see_what_a_video_would_hold(watched: Watched, written: Watched) -> None:
    watched.until(FRAMES - 1)
    assert [stats for _, stats in watched.seen] == [stats for _, stats in written.seen]
    said = [stats.verdict for _, stats in watched.seen]
    assert said[-1].startswith("A verdict needs 40 s of driving; 0 s were scored so far")
    for (ours, _), (theirs, _) in zip(watched.seen, written.seen, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_after_a_seek_the_model_remembers_what_came_before(watched: Watched, written: Watched) -> None:
    """The place is less than the memory's length into the drive, so its numbers are the whole drive's."""
    watched.until(FRAMES - 1)
    sought = 5
    shown = len(watched.seen)
    watched.seek(written.seen[sought][1].time_s)
    _, stats = watched.until(sought, after=shown)
    assert watched.seen[shown][1].frame == sought, "what only fills the memory is not shown"
    expected = written.seen[sought][1]
    assert stats.predicted == expected.predicted
    assert stats.area == pytest.approx(expected.area, rel=1e-5)
    assert (stats.scored, expected.scored) == (1, sought), "means begin anew"


def test_another_method_goes_on_where_the_last_one_was(watched: Watched, written: Watched) -> None:
    watched.until(FRAMES - 1)
    watched.pause(True)
    shown = len(watched.seen)
    watched.seek(written.seen[6][1].time_s)
    watched.until(6, after=shown)
    shown = len(watched.seen)
    watched.switch("grad-cam")
    picture, _ = watched.until(6, after=shown)
    assert watched.newest(0, 1.0).state["playback"]["method"] == "grad-cam"
    assert (picture != written.seen[6][0]).any()


def test_pausing_stepping_and_looking_leave_the_video_as_it_is(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path
) -> None:
    # A viewer's frames are encoded one by one.
    how = ReplayConfig(preset="ultrafast", end_s=0.3, batch_size=1)
    replay(checkpoint, recording, tmp_path / "alone.mp4", how)
    live = Watched()
    live.pause(True)

    def play_with_it() -> None:
        live.until(0)
        live.step()
        live.until(1)
        live.newest(0, 1.0)
        live.pause(False)

    viewer = threading.Thread(target=play_with_it)
    viewer.start()
    replay(checkpoint, recording, tmp_path / "watched.mp4", how, live=live)
    viewer.join(20)
    assert (tmp_path / "alone.mp4").read_bytes() == (tmp_path / "watched.mp4").read_bytes()
    for name in ("results.json", "per_frame.parquet"):
        alone, watched = (
            (tmp_path / f"{each}.scores" / name).read_bytes().replace(b"watched.mp4", b"alone.mp4")
            for each in ("alone", "watched")
        )
        assert alone == watched
    assert live.newest(0, 1.0).state["ended"]


@pytest.mark.parametrize("writes", [False, True])
def test_a_paused_replay_ends_at_ctrl_c(
    checkpoint: Checkpoint, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: bool
) -> None:
    """The thread that shows pictures waits for viewers, who will not come again."""
    live = Watched()
    live.pause(True)

    def interrupted(consumer: Consumer, item: object) -> None:
        put(consumer, item)
        if live.seen:
            threading.Event().wait(0.2)  # Until the thread has taken it, and waits.
            raise KeyboardInterrupt

    put = Consumer.put
    monkeypatch.setattr(Consumer, "put", interrupted)
    # Were it to wait, this lets the test go on.
    rescue = threading.Timer(20, live.close)
    rescue.start()
    how = ReplayConfig(preset="ultrafast")
    play = partial(replay, out=tmp_path / "v.mp4") if writes else watch
    with pytest.raises(KeyboardInterrupt):
        play(checkpoint, recording, config=how, live=live)
    assert rescue.is_alive(), "it ended by itself"
    rescue.cancel()
    assert not list(tmp_path.iterdir())


def test_only_methods_that_fit_are_offered(checkpoint: Checkpoint) -> None:
    offered = fitting_methods(checkpoint.model)
    assert {"sign-attention", "grad-cam", "random"} <= set(offered)
    assert not {"soft-attention", "rollout"} & set(offered)


@pytest.mark.parametrize("arguments", [[], ["--serve", "0", "--show"]])
def test_the_command_wants_a_video_or_viewers(checkpoint: Checkpoint, arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["replay", str(checkpoint.path), "source", *arguments])
    assert done.exit_code == 2
    assert "nothing to write; give --out FILE.mp4, or --serve PORT to look only" in done.stderr


class Classes(nn.Module):
    """The mean of each colour as three classes."""

    outputs = Outputs(kind="multiclass", names=("red", "green", "blue"))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return 2 * frames.mean((2, 3))


def test_classes_are_watched_too_and_a_seek_needs_no_memory(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        pixels = np.full((48, 64, 3), 40, np.uint8)
        pixels[:, :, number % 3] = 200  # Blue first, as OpenCV writes.
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
    colours = Checkpoint(
        path=Path("c"), model=Classes().eval(), config={"kind": "colours"}, metrics={}, sha256=""
    )
    live = Watched()
    how = ReplayConfig(method="gradient-x-input", frame_rate=10)
    thread = threading.Thread(target=watch, args=(colours, folder, live, how))
    thread.start()
    try:
        _, stats = live.until(5)
        assert stats.predicted.startswith("red 0.")
        assert stats.truth is None
        assert 0 < stats.area < 1
        assert stats.scored == 6
        shown = len(live.seen)
        live.seek(0.4)
        _, stats = live.until(4, after=shown)
        assert stats.predicted.startswith("green 0.")
        assert stats.scored == 1, "means begin anew"
        live.switch("gradient")
        playback = live.newest(0, 5.0).state["playback"]
        assert playback["legend"]["truth"] == "label"
        assert {"gradient", "occlusion"} <= set(playback["methods"])
        assert "sign-attention" not in playback["methods"]
    finally:
        live.close()
        thread.join(20)
    assert not thread.is_alive()
