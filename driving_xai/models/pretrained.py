"""Published weights of timm's and torchvision's networks: from their caches, or the network asked once."""

from __future__ import annotations

import logging
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from driving_xai.errors import CheckpointError

_SECONDS = 10.0
"""The longest wait for an answer; huggingface_hub tries for most of a minute, and says nothing."""
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def timm_network(name: str, **keywords: Any) -> Any:
    """timm's network with its published weights of that name.

    Args:
        keywords: of `timm.create_model`.

    Raises:
        CheckpointError: the weights are neither cached nor reachable.
    """
    import timm

    settings = timm.get_pretrained_cfg(name)
    cached = None if settings is None else _cached(settings)
    if settings is not None and cached is None:
        require_reachable(_address(settings), f"timm's weights {settings.architecture}.{settings.tag}")
    from_cache: dict[str, Any] = {} if cached is None else {"pretrained_cfg_overlay": {"file": str(cached)}}
    with attempts_unsaid():
        return timm.create_model(name, pretrained=True, **from_cache, **keywords)


def require_reachable(address: str, what: str) -> None:
    """Asks once for the head of a file that is to be fetched.

    Args:
        what: the file, for the message.

    Raises:
        CheckpointError: no answer, or one that the file is not there.
    """
    cure = "give a local file of weights, or take random ones"
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        raise CheckpointError(f"{what} are not cached, and HF_HUB_OFFLINE forbids to fetch them; {cure}")
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):
            return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise CheckpointError(
            f"{what} are neither cached nor reachable ({urlparse(address).netloc}: {reason}); {cure}"
        ) from error


def _cached(settings: Any) -> Path | None:
    """The file of timm's weights where it has been fetched before."""
    import torch
    from huggingface_hub import try_to_load_from_cache

    if settings.hf_hub_id:
        names = [settings.hf_hub_filename] if settings.hf_hub_filename else _HUB_FILES
        found = [try_to_load_from_cache(settings.hf_hub_id, name) for name in names]
        return next((Path(each) for each in found if isinstance(each, str)), None)
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(settings.url or "").path).name
    return path if path.is_file() else None


def _address(settings: Any) -> str:
    from huggingface_hub import hf_hub_url

    if settings.hf_hub_id:
        return hf_hub_url(settings.hf_hub_id, settings.hf_hub_filename or _HUB_FILES[0])
    return str(settings.url)


@contextmanager
def attempts_unsaid() -> Iterator[None]:
    """Keeps huggingface_hub from logging each of its attempts; what came of them is an error or weights."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
