"""The model that CHECKPOINT stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from driving_xai.checkpoint import Checkpoint


def open_model(text: str, *, device: str, weights: Path | None = None) -> Checkpoint:
    """Loads what CHECKPOINT stands for, and says so where its training has not ended.

    Args:
        text: as it was typed: a folder that train wrote, `timm:NAME`, `torchvision:NAME` or `module:factory`.
        device: where the model will run, as torch names it.
        weights: of a foreign model.

    Raises:
        CheckpointError: there is no such checkpoint, it is damaged, or weights do not fit.
        UnsupportedModelError: no model has that name.
    """
    from driving_xai import checkpoint
    from driving_xai.cli import console
    from driving_xai.models.foreign import is_foreign, load

    # Foreign models bring timm and torchvision along, which take a second to import.
    if weights is None and not is_foreign(text):
        found = checkpoint.load(Path(text), device=device)
        if found.caution:
            console.say(found.caution)
        return found
    return load(text, weights=weights, device=device)
