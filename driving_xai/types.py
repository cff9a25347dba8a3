"""Shapes and protocols shared by models, explainers and measures. No logic lives here.

Frames are RGB in [0, 1]; a model converts colour and normalises inside itself. Explainers and
measures see one instant: no time axis. A recurrent model hands out that view with `at(state)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

Frames = Float[Tensor, "B 3 H W"]
"""RGB in [0, 1]."""
Scores = Float[Tensor, "B K"]
"""Steering: inverse turning radius (1/m, positive to the left), K = 1. Actions and classes: logits."""
Saliency = Float[Tensor, "B H W"]
"""On the frame grid, float32, finite; signed or not as the method says; never normalised."""
Attention = Float[Tensor, "B h w"]
"""A model's own attention on its feature grid; sums to one over the grid."""
Target = Callable[[Scores], Float[Tensor, " B"]]
"""Scores to the one scalar a sample is explained or measured by."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the columns of a model's scores mean."""

    kind: Literal["regression", "multilabel", "multiclass"]
    names: tuple[str, ...]
    unit: str | None = None


class FrameModel(Protocol):
    """A model of one instant: each frame is judged by itself."""

    @property
    def outputs(self) -> Outputs: ...

    def __call__(self, frames: Frames) -> Scores: ...


@runtime_checkable
class AttentiveFrameModel(FrameModel, Protocol):
    """A frame model that writes its own attention map."""

    def attention(self, frames: Frames) -> Attention: ...


@runtime_checkable
class SelectiveFrameModel(FrameModel, Protocol):
    """A frame model whose prediction rests on a selection of cells of its feature grid."""

    def selection(self, frames: Frames) -> Float[Tensor, "B h w"]:
        """Positive on the selected cells, zero elsewhere."""
        ...


class Explainer(Protocol):
    """Says how much each pixel of each frame matters for the target."""

    def __call__(self, model: FrameModel, frames: Frames, target: Target) -> Saliency: ...


State = TypeVar("State")


class RecurrentModel(Protocol[State]):
    """A model of a drive: one step a frame, carrying a state."""

    @property
    def outputs(self) -> Outputs: ...

    def step(self, frames: Frames, state: State | None) -> tuple[Scores, Attention, State]:
        """Advances B drives by one frame. `state=None` starts them.

        Returns the scores, the attention and the state to pass with the next frame.
        """
        ...

    def at(self, state: State | None) -> FrameModel:
        """The stateless view of one instant, whose past is `state` (of S drives).

        The view takes N frames, N a multiple of S: frame n is judged with state n // (N // S), so
        the N / S variants of one instant stand together.
        """
        ...
