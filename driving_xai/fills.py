"""What takes a removed pixel's place, by name; `perturb` makes the pictures."""

from __future__ import annotations

from typing import Literal

Fill = Literal["black", "mean", "blur", "imagenet-mean"]
CurveFill = Literal[Fill, "bias-image"]
"""What a removed pixel shows along a curve: a fill, or the mean of the training images, which only a data set knows."""
FILL_SPACE = "RGB in [0, 1], before the model's colour conversion and normalisation"
