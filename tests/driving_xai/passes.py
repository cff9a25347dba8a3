"""Counts how often a network runs, and on how many frames each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from driving_xai.models.feature_maps import removed_after


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """The frames that enter the model's first convolution, call by call.

    Args:
        model: each of its passes begins with that convolution.
    """
    frames: list[int] = []
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    with removed_after(
        [first.register_forward_hook(lambda _layer, _inputs, output: frames.append(len(output)))]
    ):
        yield frames
