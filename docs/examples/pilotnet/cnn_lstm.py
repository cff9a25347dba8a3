"""A CNN with nn.LSTM behind it, in somebody's own style, driven by driving-xai through `step` and `at`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from driving_xai.types import FrameModel, Outputs

State = tuple[Tensor, Tensor]
"""nn.LSTM's h and c; driving-xai wants the drives first, nn.LSTM wants them second."""


class CnnLstm(nn.Module):
    """Clips [B, T, 3, H, W] to steering [B, T]: what its own training calls."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
        )
        self.lstm = nn.LSTM(32 * 4 * 8, hidden, num_layers=2, batch_first=True)
        self.steer = nn.Linear(hidden, 1)
        self.pool = nn.AdaptiveAvgPool2d((4, 8))

    def forward(self, clips: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        batch, steps = clips.shape[:2]
        features = self.pool(self.cnn(clips.flatten(0, 1) - 0.5)).flatten(1)
        hidden, state = self.lstm(features.unflatten(0, (batch, steps)), state)
        return self.steer(hidden)[..., 0], state


class Driven(nn.Module):
    """That network one frame at a time."""

    outputs = Outputs(kind="regression", names=("curvature",), unit="1/m")

    def __init__(self, network: CnnLstm) -> None:
        super().__init__()
        self.network = network

    def step(self, frames: Tensor, state: State | None) -> tuple[Tensor, None, State]:
        """One frame of B drives; the scores, no attention, the state to come."""
        before = None if state is None else (state[0].transpose(0, 1), state[1].transpose(0, 1))
        steering, (h, c) = self.network(frames[:, None], _contiguous(before))
        return 0.1 * steering, None, (h.transpose(0, 1), c.transpose(0, 1))

    def at(self, state: State | None) -> FrameModel:
        """The view of one instant: N frames, the N / S variants of one of the S drives together."""
        return Instant(self, state)

    def forward(self, frames: Tensor) -> Tensor:
        """As the first frames of their drives."""
        return self.step(frames, None)[0]


class Instant:
    """The network with a past."""

    def __init__(self, model: Driven, state: State | None) -> None:
        self.network, self.outputs, self._state = model, model.outputs, state

    def __call__(self, frames: Tensor) -> Tensor:
        if self._state is None:
            return self.network.step(frames, None)[0]
        variants = len(frames) // len(self._state[0])
        h, c = (part.repeat_interleave(variants, 0) for part in self._state)
        return self.network.step(frames, (h, c))[0]


def _contiguous(state: State | None) -> State | None:
    return None if state is None else (state[0].contiguous(), state[1].contiguous())


def build() -> nn.Module:
    """What driving-xai calls for `cnn_lstm:build`."""
    torch.manual_seed(0)
    return Driven(CnnLstm())
