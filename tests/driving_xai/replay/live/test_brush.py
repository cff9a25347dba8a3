"""The brush on a small drive and on classes: what it answers is what the model says, and what it refuses."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from data_prep.schema import Vehicle
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.drives import degrees_per_unit
from driving_xai.evaluation.brush_cases import load_cases
from driving_xai.replay.config import ReplayConfig
from driving_xai.replay.live import server
from driving_xai.replay.live.brush import MOST_OUTPUTS, BrushFrame, BrushRequest
from driving_xai.replay.live.control import Live
from driving_xai.replay.live.server import serving
from driving_xai.replay.live.watching import watch
from driving_xai.types import Outputs

from .test_control import playback, stats
from .test_server import LOOPBACK, View
from .test_watching import Watched


def packed(mask: np.ndarray) -> bytes:
    return np.packbits(mask).tobytes()


class Watching:
    """A source that is watched in a thread and held at a frame."""

    def __init__(self, checkpoint: Checkpoint, source: Path, **config: Any) -> None:
        self.live = Watched()
        how = ReplayConfig(score=False, **config)
        self.thread = threading.Thread(target=watch, args=(checkpoint, source, self.live, how))
        self.thread.start()

    def held(self, frame: int) -> BrushFrame:
        self.live.until(frame)
        return self.live.brush()[1]

    def end(self) -> None:
        self.live.close()
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def drive(checkpoint: Checkpoint, recording: Path) -> Iterator[Watching]:
    watching = Watching(checkpoint, recording, end_s=0.3)
    yield watching
    watching.end()


def test_it_edits_the_shown_frame_and_keeps_the_memory_before_it(
    drive: Watching, checkpoint: Checkpoint
) -> None:
    brushed = drive.held(5)
    pending = brushed._pending
    assert pending.result.seen.frame.index == 5
    assert brushed.memory
    mask = np.zeros(brushed.frame.shape[:2], bool)
    mask[40:60, 50:90] = True
    found = brushed.without(packed(mask), "the road").case
    scale = float(
        degrees_per_unit(np.array(pending.result.seen.speed_mps_smoothed), drive_vehicle(checkpoint))
    )
    edited = pending.frames.clone()
    edited[..., 40:60, 50:90] = 0
    model: Any = checkpoint.model
    with torch.no_grad():
        clean, black = (float(model.step(each, pending.past)[0][0, 0]) for each in (pending.frames, edited))
    assert found.before == pytest.approx([clean * scale], rel=1e-4)
    assert found.fills["black"].here == pytest.approx([black * scale], rel=1e-4)
    assert (found.outputs, found.unit, found.memory) == (["steering wheel"], "°", True)
    assert len(found.offsets) == 19
    down, right = found.offsets[0]
    moved = pending.frames.clone()
    moved[..., 40 + down : 60 + down, 50 + right : 90 + right] = 0
    with torch.no_grad():
        there = float(model.step(moved, pending.past)[0][0, 0])
    assert found.fills["black"].elsewhere[0] == pytest.approx([there * scale], rel=1e-4)


def drive_vehicle(checkpoint: Checkpoint) -> Any:
    return Vehicle(**checkpoint.config["input"]["vehicle"])


def test_the_same_mask_gives_the_same_case_and_the_whole_frame_has_no_control(drive: Watching) -> None:
    brushed = drive.held(5)
    mask = np.eye(*brushed.frame.shape[:2], dtype=bool)
    assert brushed.without(packed(mask)).case == brushed.without(packed(mask)).case
    whole = brushed.without(packed(np.ones_like(mask)))
    assert whole.case.offsets == []
    assert "no room to move the area" in whole.describe()["sentences"][0]


class Shares(nn.Module):
    """As many classes as asked for; each looks at its own column of the red channel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.outputs = Outputs(kind="multiclass", names=tuple(f"class {at}" for at in range(classes)))
        self._classes = classes

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return 6 * frames[:, 0, :, : self._classes].mean(1)


def test_of_many_classes_the_predicted_and_the_changed_ones_are_kept(tmp_path: Path) -> None:
    pixels = np.full((24, 64, 3), 20, np.uint8)
    pixels[:, 7] = 255
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "ab":
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
    shares = Checkpoint(
        path=Path("c"), model=Shares(40).eval(), config={"kind": "shares"}, metrics={}, sha256=""
    )
    watching = Watching(shares, folder, method="gradient-x-input", frame_rate=10)
    try:
        brushed = watching.held(0)
        mask = np.zeros((24, 64), bool)
        mask[:, 7] = True
        case = brushed.without(packed(mask)).case
    finally:
        watching.end()
    assert len(case.outputs) == MOST_OUTPUTS
    assert case.outputs[case.predicted.index(True)] == "class 7"
    assert case.unit == ""
    effect = next(each for each in case.effects if (each.output, each.fill) == ("class 7", "black"))
    assert effect.change < -0.5
    assert effect.exceeded == len(effect.elsewhere)
    assert not case.memory


@pytest.mark.parametrize(
    ("past", "memory"), [(None, False), ((), False), ((torch.zeros(1),), True), (torch.zeros(2), True)]
)
def test_an_empty_state_is_no_memory(past: Any, memory: bool) -> None:
    pending: Any = SimpleNamespace(past=past)
    brushes: Any = None
    assert BrushFrame(brushes, pending).memory is memory


@pytest.fixture
def brushing(drive: Watching, tmp_path: Path) -> Iterator[View]:
    """A served view of the frame at which the drive is held."""
    brushed = drive.held(5)
    live = Live(cases=tmp_path / "cases")
    with serving(live, host=LOOPBACK, port=0) as address:
        live.begin(playback(free=False), at_s=0.0)
        live.show(np.zeros((48, 64, 3), np.uint8), stats(5), brush=brushed)
        yield View(live, address)


def sent(view: View, body: Any, **headers: str) -> tuple[int, Any]:
    text = body if isinstance(body, str) else json.dumps(body)
    status, _, answer = view.ask("POST", "/brush", text, **{"Content_Type": "application/json", **headers})
    return status, json.loads(answer) if status == 200 else answer.decode()


def mask_text(view: View) -> str:
    sheet = json.loads(view.ask("GET", "/brush")[2])
    mask = np.zeros((sheet["height"], sheet["width"]), bool)
    mask[30:40, 20:50] = True
    return base64.b64encode(packed(mask)).decode()


def test_a_viewer_paints_sees_and_saves(brushing: View, tmp_path: Path) -> None:
    sheet = json.loads(brushing.ask("GET", "/brush")[2])
    assert (sheet["width"], sheet["height"], sheet["memory"], sheet["picture"]) == (160, 80, True, 1)
    coded = np.frombuffer(base64.b64decode(sheet["image"].partition(",")[2]), np.uint8)
    frame = brushing.live.brush()[1].frame
    np.testing.assert_array_equal(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1], frame)
    status, found = sent(brushing, {"picture": 1, "mask": mask_text(brushing)})
    assert (status, found["saved"], len(found["effects"])) == (200, None, 3)
    assert found["share"] == pytest.approx(300 / 12800)
    assert not (tmp_path / "cases").exists()
    status, found = sent(brushing, {"picture": 1, "mask": mask_text(brushing), "save": True, "note": "verge"})
    assert found["saved"] == "case-001"
    (saved,) = load_cases(tmp_path / "cases")
    assert saved.case.note == "verge"
    assert saved.mask.sum() == 300
    np.testing.assert_array_equal(saved.frame, frame)
    assert saved.case.sentences == found["sentences"]


def test_what_cannot_be_is_said_in_a_line(brushing: View) -> None:
    mask = mask_text(brushing)
    empty, outside = base64.b64encode(bytes(1600)).decode(), base64.b64encode(b"\xff" * 1601).decode()
    for body in (
        "{",
        "[]",
        "[" * 1000,
        "1",
        {"picture": 1},
        {"picture": "1", "mask": mask},
        {"mask": mask},
        {"picture": 1, "mask": "é"},
        {"picture": 1, "mask": "AAA"},
        {"picture": 1, "mask": mask, "more": 1},
        {"picture": 1, "mask": mask, "save": "yes"},
        {"picture": 1, "mask": mask, "note": "x" * 401},
    ):
        status, said = sent(brushing, body)
        assert (status, "\n" in said) == (400, False), body
    for body, words in (
        ({"picture": 1, "mask": empty}, "nothing is painted"),
        ({"picture": 1, "mask": outside}, "none outside"),
        ({"picture": 1, "mask": mask[:-4]}, "expected a bit for each of the 160x80 pixels"),
        ({"picture": 0, "mask": mask}, "has been passed"),
        ({"picture": 2, "mask": mask}, "has been passed"),
    ):
        status, said = sent(brushing, body)
        assert status == 409, body
        assert words in said
    assert sent(brushing, {"picture": 1, "mask": mask}, Content_Type="text/plain")[0] == 404
    assert sent(brushing, {"picture": 1, "mask": mask}, Content_Type="multipart/form-data")[0] == 404
    assert sent(brushing, {"picture": 1, "mask": mask}, Origin="http://evil.example")[0] == 403
    assert sent(brushing, {"picture": 1, "mask": mask}, Host="evil.example")[0] == 403
    huge = f"POST /brush HTTP/1.1\r\nHost: localhost\r\nContent-Length: {3 * 2**20}\r\n\r\n"
    assert brushing.raw(huge.encode()).startswith(b"HTTP/1.1 413")
    brushing.live.cases = None
    status, said = sent(brushing, {"picture": 1, "mask": mask, "save": True})
    assert (status, "--cases FOLDER" in said) == (409, True)


def test_a_mask_of_a_frame_that_has_been_passed_is_refused(brushing: View) -> None:
    mask, brushed = mask_text(brushing), brushing.live.brush()[1]
    brushing.live.show(np.zeros((48, 64, 3), np.uint8), stats(6), brush=brushed)
    status, said = sent(brushing, {"picture": 1, "mask": mask})
    assert (status, "has been passed" in said) == (409, True)
    assert sent(brushing, {"picture": 2, "mask": mask})[0] == 200


def test_before_the_first_picture_there_is_nothing_to_paint_on(view: View) -> None:
    status, _, said = view.ask("GET", "/brush")
    assert (status, b"no frame to paint on" in said) == (409, True)


def test_a_model_that_is_busy_says_so(brushing: View, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        asked.set()
        go_on.wait(10)
        raise ValueError("done")

    monkeypatch.setattr(server, "_BRUSH_WAIT_S", 0.05)
    body = {"picture": 1, "mask": mask_text(brushing)}
    monkeypatch.setattr(BrushFrame, "without", slow)
    first = threading.Thread(target=sent, args=(brushing, body))
    first.start()
    assert asked.wait(10)
    status, said = sent(brushing, body)
    go_on.set()
    first.join(10)
    assert (status, "busy with other brushes" in said) == (503, True)


@pytest.fixture
def view() -> Iterator[View]:
    live = Live()
    with serving(live, host=LOOPBACK, port=0) as address:
        yield View(live, address)


def test_a_request_is_read_strictly() -> None:
    read = BrushRequest.parse(b'{"picture": 3, "mask": "gA=="}')
    assert read == (3, b"\x80", False, "")
    with pytest.raises(ValueError, match="base64"):
        BrushRequest.parse(b'{"picture": 3, "mask": "g!"}')
