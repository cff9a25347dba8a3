"""A film of a drive from Python, of any model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.places import local, local_output
from driving_xai.models.foreign import as_checkpoint
from driving_xai.replay.config import ReplayConfig

if TYPE_CHECKING:
    from driving_xai.replay.player import ReplayResult


def write(
    model: object,
    source: Path | str,
    out: Path | str,
    config: ReplayConfig | None = None,
    *,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> ReplayResult:
    """Renders a drive with the model's evidence on each frame, scored while it plays.

    Args:
        model: a loaded checkpoint, or any model with `outputs`, such as `wrap` makes; on the device to compute on.
        source: a video, a recording, a folder of images or of shards, here or in a store; see docs/replay.md.
        out: an H.264 video, ends in .mp4; the scores lie beside it in the folder of its name with .scores.
        config: what is played and how.
        on_progress: called after each frame with the frames done and in all, where that is known.

    Raises:
        DataError: the source is missing, damaged, or does not fit the model.
        UnsupportedModelError: the model says nothing of its outputs, is in training mode, or lacks what the method needs.
        VideoError: no H.264 encoder, or the video cannot be written.

    Example:
        >>> write(lambda frames: frames.mean((2, 3)), "drive.mp4", "out.mp4")
        Traceback (most recent call last):
        driving_xai.errors.UnsupportedModelError: function says nothing of its outputs; wrap it: driving_xai.wrap(net, ...)
    """
    from driving_xai.replay.player import replay

    return replay(as_checkpoint(model), local(source), local_output(out), config, on_progress=on_progress)
