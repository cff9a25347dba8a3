"""How a frame of a source becomes the model's input, and which part of the frame that is."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from data_prep.geometry import Geometry
from data_prep.schema import Image
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.images import resized
from driving_xai.data.input_rule import InputRule, Region
from driving_xai.models.declared import declared_input_size


def made_elsewhere(checkpoint: Checkpoint) -> bool:
    """Whether no training here cut the frames of a checkpoint's model, as `models.foreign` loads one."""
    return "input" not in checkpoint.config or "foreign" in checkpoint.config.get("model", {})


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """The cut and the size of a model's frames: as in its training, or as the model declares."""

    rule: InputRule | None
    """Of a checkpoint that says how its frames were cut; None of a model made elsewhere."""
    size: tuple[int, int] | None
    """Height and width that such a model declares."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> ModelInput:
        """What a checkpoint, or else its model, says.

        Raises:
            CheckpointError: a checkpoint's section `input` is incomplete.
        """
        if not made_elsewhere(checkpoint):
            return cls(rule=InputRule.of(checkpoint), size=None)
        return cls(rule=None, size=declared_input_size(checkpoint.model))

    @property
    def geometry(self) -> Geometry:
        """The crop; without one, the whole frame."""
        return Geometry() if self.rule is None or self.rule.geometry is None else self.rule.geometry

    @property
    def note(self) -> str:
        """What the caption says of a frame that no training's geometry cut; otherwise empty."""
        if self.rule is not None:
            return ""
        return "whole frame" if self.size is None else f"frame resized to {self.size[1]}x{self.size[0]}"

    def apply(self, image: Image, *, cut: bool) -> UInt8[np.ndarray, "h w 3"]:
        """The model's input.

        Args:
            cut: whether the image was cut to the geometry already, as shards are.
        """
        if self.rule is not None:
            return resized(image, self.rule.short_side_px) if cut else self.rule.apply(image)
        if self.size is None or self.size == image.shape[:2]:
            return image
        return cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)

    def region(self, height: int, width: int, *, cut: bool) -> Region:
        """The part of a frame of this size that the model sees."""
        if cut or self.rule is None:
            return Region(0, height, 0, width)
        return self.rule.region(height, width)
