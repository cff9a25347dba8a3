"""The model that CHECKPOINT stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from driving_xai.checkpoint import Checkpoint


def open_model(text: str, *, device: str) -> Checkpoint:
    """Loads what CHECKPOINT stands for: a folder that train wrote.

    Args:
        text: as it was typed.
        device: where the model will run, as torch names it.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    from driving_xai import checkpoint

    return checkpoint.load(Path(text), device=device)
