"""What a task is to a replay: how scores are read, which curves are drawn, what a picture shows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from data_prep.schema import Image
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import OptionError
from driving_xai.metrics.quantities import Quantity
from driving_xai.replay.config import Layout, ReplayConfig
from driving_xai.replay.frames import FrameSource, SourceFrame
from driving_xai.replay.inset import CurveView
from driving_xai.replay.model_input import ModelInput
from driving_xai.replay.predict import Curves, FrameResult, Output, Prediction
from driving_xai.types import Scores

SEEN_AS = {"train": "seen in training", "val": "validation", "test": "held out", "gap": "next to training"}
"""How the picture says what a split of the model's own shards means."""


class Painter(Protocol):
    """Draws the frames of one replay, in order. It carries what must be stable over time, such as scales."""

    @property
    def height(self) -> int:
        """Of its pictures."""
        ...

    @property
    def width(self) -> int: ...

    def draw(self, result: FrameResult, curves: Sequence[CurveView | None]) -> Image:
        """The picture of the next frame.

        Args:
            curves: for each explanation; None where nothing is scored.
        """
        ...


class Legend(NamedTuple):
    """The words that the live page puts around a task's numbers."""

    predicted: str
    truth: str
    areas: str
    """What the areas under the curves mean."""
    decimals: int
    """Of areas."""


class Task(ABC):
    """One task of a model on one source."""

    name: ClassVar[str]
    """As messages say it: models of ..."""
    only: ClassVar[frozenset[str]]
    """Options of `ReplayConfig` that models of other tasks cannot use."""
    layouts: ClassVar[tuple[Layout, ...]]
    """That its pictures can have, the usual one first."""
    takes_images: ClassVar[bool]
    """Whether single labelled images can be played."""
    quantity: ClassVar[Quantity]
    """What the curves are of."""
    references: ClassVar[tuple[str, ...]]
    """What the quantity is compared with: the keys of `Curves`."""
    explains_every_frame: ClassVar[bool]
    """Whether each frame has one explanation, so that the mean area has an interval over blocks of frames."""
    legend: ClassVar[Legend]
    output_unit: ClassVar[str]
    """Of the outputs as people read them; empty for probabilities."""

    def __init__(
        self, checkpoint: Checkpoint, frames: FrameSource, cut: ModelInput, config: ReplayConfig
    ) -> None:
        """Keeps what a task goes by.

        Raises:
            OptionError: the layout is for models of another task.
        """
        self.checkpoint, self.frames, self.cut, self.config = checkpoint, frames, cut, config
        if self.layout not in self.layouts:
            raise OptionError(
                f"layout {self.layout} is not for models of {self.name}; expected one of: {', '.join(self.layouts)}"
            )

    @property
    def layout(self) -> Layout:
        """That was asked for, or the usual one."""
        return self.config.layout or self.layouts[0]

    @property
    @abstractmethod
    def reference(self) -> str:
        """Whose curve is drawn, of `references`."""

    @property
    @abstractmethod
    def protocol(self) -> Mapping[str, Any]:
        """What is explained and edited, and what each reference means, for results.json."""

    @property
    def notes(self) -> Sequence[str]:
        """What the lower left corner of the picture says of this task."""
        return ()

    @abstractmethod
    def read(self, clean: Scores, seen: SourceFrame) -> Prediction:
        """What a model's scores for one frame (1 K) say."""

    @abstractmethod
    def curves(self, scores: Float[Tensor, "V K"], output: Output, prediction: Any, clean: Scores) -> Curves:
        """An output's curves from the scores of the edited frames.

        Args:
            prediction: the frame's `Prediction.value`.
            clean: the scores of the unedited frame.
        """

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """The outputs as people read them, in the order of the scores."""

    @abstractmethod
    def read_outputs(self, scores: Float[Tensor, "V K"], prediction: Any) -> Float64[np.ndarray, "V K"]:
        """Scores as people read them: an angle of the wheel, or probabilities.

        Args:
            prediction: the frame's `Prediction.value`.
        """

    @abstractmethod
    def painter(
        self, first: FrameResult, provenance: str, *, layout: Layout, room: tuple[int, int] | None
    ) -> Painter:
        """What draws the frames.

        Args:
            first: decides sizes and colours; it holds the explanations of one method.
            provenance: what made the picture.
            layout: of the picture.
            room: height and width that it will have in pixels; None where it may choose.
        """

    @abstractmethod
    def in_words(self, result: FrameResult) -> tuple[str, str | None]:
        """The prediction and the truth of a frame for the live page; None where the truth is unknown."""
