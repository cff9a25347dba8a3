"""How a camera's frame becomes what a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from data_prep.geometry import Geometry
from data_prep.schema import Image
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.images import resized
from driving_xai.errors import CheckpointError


class Region(NamedTuple):
    """A part of a frame, in its pixels."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True, kw_only=True)
class InputRule:
    """Cut to a geometry, then resized, each where the model's shards were."""

    geometry: Geometry | None
    short_side_px: int | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> InputRule:
        """The rule that a checkpoint was trained with.

        Raises:
            CheckpointError: it does not say.
        """
        try:
            told = checkpoint.config["input"]
            geometry = None if told["geometry"] is None else Geometry(**told["geometry"])
            return cls(geometry=geometry, short_side_px=told.get("short_side_px"))
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{checkpoint.path} does not say how its frames were cut ({error}); train it again"
            ) from error

    def apply(self, image: Image) -> UInt8[np.ndarray, "h w 3"]:
        """The model's input, RGB."""
        return resized(image if self.geometry is None else self.geometry.apply(image), self.short_side_px)

    def region(self, height: int, width: int) -> Region:
        """The part of a frame of this size that the model sees."""
        whole = (0, height, 0, width)
        return Region(*(whole if self.geometry is None else self.geometry.region(height, width)))
