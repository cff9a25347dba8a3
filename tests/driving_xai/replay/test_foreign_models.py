"""Models that were not made here are replayed as what their outputs say they are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_prep.schema import VEHICLES
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import CheckpointError, UnsupportedModelError
from driving_xai.evaluation.results import Results
from driving_xai.replay.config import ReplayConfig
from driving_xai.replay.model_input import ModelInput
from driving_xai.replay.player import replay
from driving_xai.replay.source import open_source
from driving_xai.replay.tasks import steering, task_for
from driving_xai.types import Frames, Outputs, Scores

from .conftest import FRAMES, HOLE_AFTER

FAST: Any = {"preset": "ultrafast", "crf": 28, "method": "gradient"}
CURVATURE = Outputs(kind="regression", names=("curvature",), unit="1/m")


class PilotNet(nn.Module):
    """A network of single frames in somebody else's style."""

    outputs = CURVATURE
    input_size: tuple[int, int] | None = (66, 200)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1))

    def forward(self, frames: Frames) -> Scores:
        assert self.input_size is None or frames.shape[2:] == self.input_size
        return 0.02 * self.body(frames)


class Nested(nn.Module):
    """A recurrent one without attention, whose state is a nest of tensors."""

    outputs = CURVATURE
    input_size = None

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode = nn.Sequential(
            nn.Conv2d(3, 4, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.cell, self.readout = nn.LSTMCell(4, 3), nn.Linear(3, 1)

    def _advance(self, frames: Frames, state: Any) -> tuple[Scores, Any]:
        memory = None
        if state is not None:
            copies = len(frames) // len(state["lstm"][0])
            memory = tuple(part.repeat_interleave(copies, 0) for part in state["lstm"])
        hidden, cell = self.cell(self.encode(frames), memory)
        seen = 0 if state is None else state["seen"][0] + 1
        return 0.02 * self.readout(hidden), {"lstm": (hidden, cell), "seen": [seen]}

    def step(self, frames: Frames, state: Any) -> tuple[Scores, None, Any]:
        scores, state = self._advance(frames, state)
        return scores, None, state

    def at(self, state: Any) -> nn.Module:
        return _Instant(self, state).eval()


class _Instant(nn.Module):
    outputs = CURVATURE

    def __init__(self, model: Nested, state: Any) -> None:
        super().__init__()
        self.model, self.state = model, state

    def forward(self, frames: Frames) -> Tensor:
        return self.model._advance(frames, self.state)[0]


def wrapped(model: nn.Module, shape: tuple[int, int] = (96, 128)) -> Checkpoint:
    with torch.no_grad():
        if isinstance(model, PilotNet):
            model(torch.zeros(1, 3, *(model.input_size or shape)))
    return Checkpoint(
        path=Path("theirs"), model=model.eval(), config={"kind": "foreign"}, metrics={}, sha256=""
    )


def test_a_model_of_single_frames_steers_and_each_frame_is_scored(recording: Path, tmp_path: Path) -> None:
    done = replay(wrapped(PilotNet()), recording, tmp_path / "v.mp4", ReplayConfig(**FAST))
    assert done.scores is not None
    results = Results.load(done.scores)
    rows = results.select(method="gradient", measure="deletion", reference="truth")
    assert rows["frame"].tolist() == list(range(FRAMES)), "no past is needed, so none is left out"
    assert "left_out" not in results.summary["protocol"]
    assert results.summary["video"]["run_starts"] == []
    assert results.summary["data"]["scored"] == FRAMES


def test_a_recurrent_one_keeps_its_nest_of_states_and_needs_no_attention(
    recording: Path, tmp_path: Path
) -> None:
    model = Nested()
    done = replay(wrapped(model), recording, tmp_path / "v.mp4", ReplayConfig(**FAST))
    assert done.scores is not None
    rows = Results.load(done.scores).select(method="gradient", measure="deletion", reference="clean")
    assert rows["frame"].tolist() == [n for n in range(FRAMES) if n not in (0, HOLE_AFTER)]
    # The steering of the third frame, by hand, with the memory of the first two.
    state: Any = None
    for seen in list(open_source(recording, vehicle=VEHICLES["lincoln-mkz"]))[:3]:
        pixels = torch.from_numpy(seen.frame.image.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            score, _, state = model.step(pixels, state)
    car = VEHICLES["lincoln-mkz"]
    expected = math.degrees(float(score[0, 0]) * car.wheelbase_m * car.steering_ratio)
    assert rows["prediction"].iloc[1] == pytest.approx(expected, rel=1e-5)


def test_the_caption_says_how_a_frame_was_made_to_fit(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    original = steering.SteeringTask.painter
    monkeypatch.setattr(
        steering.SteeringTask,
        "painter",
        lambda self, first, provenance, **how: (
            said.append(provenance) or original(self, first, provenance, **how)
        ),
    )
    for model in (PilotNet(), Nested()):
        replay(wrapped(model), recording, tmp_path / "v.mp4", ReplayConfig(**FAST, end_s=0.1, score=False))
    assert said == [
        "gradient · not scored · frame resized to 200x66",
        "gradient · not scored · whole frame",
    ]


class ManyClasses(nn.Module):
    """As many classes as ImageNet has."""

    outputs = Outputs(kind="multiclass", names=tuple(f"class-{number}" for number in range(1000)))
    input_size = None

    def forward(self, frames: Frames) -> Scores:
        brightness = frames.mean((1, 2, 3))[:, None]
        return 50 * brightness * torch.linspace(0, 1, 1000)


@pytest.mark.parametrize("layout", ["grid", "cycle"])
def test_of_many_classes_the_most_probable_are_drawn(recording: Path, tmp_path: Path, layout: Any) -> None:
    how = ReplayConfig(**FAST, layout=layout, end_s=0.15)
    done = replay(wrapped(ManyClasses()), recording, tmp_path / "v.mp4", how)
    assert done.scores is not None
    assert set(Results.load(done.scores).per_frame["target"]) == {"class-999"}
    with av.open(str(done.video)) as video:
        stream = video.streams.video[0]
        assert stream.width * stream.height < 4e6, "a thousand tiles would be no picture"


def test_a_loaded_foreign_model_needs_no_vehicle(recording: Path, tmp_path: Path) -> None:
    """Such a checkpoint says what it is and has an input without a geometry."""
    config = {
        "kind": "steering",
        "model": {"foreign": "theirs:pilotnet", "weights": None},
        "input": {"geometry": None, "short_side_px": None},
    }
    loaded = replace(wrapped(PilotNet()), config=config)
    done = replay(loaded, recording, tmp_path / "v.mp4", ReplayConfig(**FAST, end_s=0.15, score=False))
    assert done.frames == 3


def test_a_frame_is_resized_to_what_the_model_declares_or_used_whole() -> None:
    image = np.zeros((96, 128, 3), np.uint8)
    sized, whole = (ModelInput.of(wrapped(model)) for model in (PilotNet(), Nested()))
    assert sized.apply(image, cut=False).shape == (66, 200, 3)
    assert whole.apply(image, cut=False) is image
    assert sized.region(96, 128, cut=False) == whole.region(96, 128, cut=False) == (0, 96, 0, 128)


def test_what_a_model_does_not_say_is_one_line(recording: Path, tmp_path: Path) -> None:
    silent = nn.Sequential(nn.Flatten())
    with pytest.raises(CheckpointError, match="does not say what its outputs mean"):
        task_for(wrapped(silent))
    degrees = PilotNet()
    degrees.outputs = Outputs(kind="regression", names=("angle",), unit="deg")
    with pytest.raises(
        UnsupportedModelError, match="output is in 'deg'; expected the inverse turning radius"
    ):
        replay(wrapped(degrees), recording, tmp_path / "v.mp4", ReplayConfig(**FAST))
    assert not list(tmp_path.iterdir())
