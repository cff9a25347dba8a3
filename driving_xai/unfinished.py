"""A training that has not ended: how far it came, and its best weights so far, which may be used while it goes on.

Nothing here locks. A training replaces its files whole, so a reader that holds one open has all of it.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from driving_xai.errors import CheckpointError

RESUME = "resume"
"""Inside the output directory: what `--resume` continues from."""
LAST, BEST, RECORDED = "last.ckpt", "best.ckpt", "config.json"
"""Inside it: the state after the last epoch, that after the best one, and what both belong to."""
FROZEN = "frozen.safetensors"
"""Inside it: the model before training, where only a part of it learns and is in the states."""
KEPT = "kept_model"
"""Under this name a state has its `Kept`."""
_PARTS: Mapping[str, type | tuple[type, ...]] = {
    "epoch": int,
    "global_step": int,
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}
"""What Lightning goes on from, by its names."""


class Kept(NamedTuple):
    """Where a checkpoint's model lies in a training's state."""

    prefix: str
    """How the names of its weights begin."""
    becomes: str = ""
    """What the prefix is replaced by; with a part of a model, the others' weights are in `FROZEN`."""


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A training that can be resumed."""

    kind: str
    """The kind of checkpoint that it will write."""
    epoch: int
    """How many whole epochs are kept."""
    epochs: int
    """How many epochs it is to have."""
    best_epoch: int | None
    """The epoch of the best weights, counted from 1; None before the first epoch ended."""
    monitor: str | None
    """The name of the metric that decides which epoch is best; None where the last one counts."""
    value: float | None
    """The monitor's value in that epoch; None also where no epoch had a finite one."""
    best: Path | None
    """The file with these weights, a Lightning checkpoint."""

    def __str__(self) -> str:
        by = "" if self.monitor is None or self.value is None else f" ({self.monitor} {self.value:.4g})"
        return f"epoch {self.best_epoch} of {self.epochs}, the best so far{by}"

    def described(self) -> dict[str, Any]:
        """For the results of a model with these weights."""
        return {name: value for name, value in asdict(self).items() if name not in ("kind", "best")}


def is_unfinished(out: Path) -> bool:
    """Whether a folder holds a training that was begun and has written no checkpoint."""
    return (out / RESUME / RECORDED).is_file() and not (out / RECORDED).exists()


def read(out: Path) -> Unfinished:
    """How far a training has come.

    Raises:
        CheckpointError: its files are damaged.
    """
    folder = out / RESUME
    try:
        last, best = (load_saved(file) if file.exists() else None for file in (folder / LAST, folder / BEST))
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreadable(folder, error) from error
    return _found(folder, configuration(out), last, best)


class BestSoFar(NamedTuple):
    """The weights of an unfinished training, as a checkpoint would hold them."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    sha256: str
    """Of the file with the best state."""
    progress: Unfinished


def best_so_far(out: Path) -> BestSoFar:
    """The best weights of a training that is running or was stopped.

    Raises:
        CheckpointError: no epoch has ended yet, or a file is damaged.
    """
    folder, config = out / RESUME, configuration(out)
    try:
        with (folder / BEST).open(
            "rb"
        ) as file:  # One file for its hash and its content, though it be replaced.
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            best = load_saved(folder / BEST, opened=file)
    except FileNotFoundError:
        raise CheckpointError(
            f"{out} is a training that has not ended its first epoch; wait for it, or go on with --resume"
        ) from None
    try:
        last = load_saved(folder / LAST)
    except (CheckpointError, FileNotFoundError):
        last = best  # Only says how far the training is.
    kept = _kept(best, folder)
    weights = {
        kept.becomes + name.removeprefix(kept.prefix): value
        for name, value in best["state_dict"].items()
        if name.startswith(kept.prefix)
    }
    return BestSoFar(config, {**_frozen(folder, kept), **weights}, sha256, _found(folder, config, last, best))


def _kept(state: Mapping[str, Any], folder: Path) -> Kept:
    try:
        kept = Kept(**state[KEPT])
        if not all(isinstance(part, str) for part in kept):
            raise TypeError(f"{KEPT} is {kept}")
    except (KeyError, TypeError) as error:
        raise _unreadable(folder, error) from error
    return kept


def _frozen(folder: Path, kept: Kept) -> dict[str, Tensor]:
    if not kept.becomes:
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / FROZEN)
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from error


def configuration(out: Path) -> dict[str, Any]:
    """The config.json that a training will write, as far as it is known."""
    folder = out / RESUME
    try:
        config = json.loads((folder / RECORDED).read_text())
        if not isinstance(config, dict) or not isinstance(config["training"]["epochs"], int):
            raise TypeError("it is no configuration of a training")
    except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise _unreadable(folder, error) from error
    return config


def _found(
    folder: Path, config: Mapping[str, Any], last: Mapping[str, Any] | None, best: Mapping[str, Any] | None
) -> Unfinished:
    try:
        watched = {} if best is None else _watched(best)
        score = watched.get("best_model_score")
        return Unfinished(
            kind=str(config["kind"]),
            epoch=0 if last is None else last["epoch"] + 1,
            epochs=config["training"]["epochs"] + config["training"].get("frame_epochs", 0),
            best_epoch=None if best is None else best["epoch"] + 1,
            monitor=watched.get("monitor"),
            # Lightning keeps infinity of a monitor that was NaN, and JSON knows neither.
            value=None if score is None or not math.isfinite(score) else float(score),
            best=None if best is None else folder / BEST,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(folder, error) from error


def _watched(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state of Lightning's callback that keeps the best weights."""
    found = [each for name, each in state["callbacks"].items() if name.startswith("ModelCheckpoint")]
    return next((each for each in found if each["monitor"] is not None), {})


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return CheckpointError(f"{folder}: cannot be read ({reason}); train again into a new folder")


def load_saved(path: Path, *, opened: IO[bytes] | None = None) -> dict[str, Any]:
    """The content of a training's state, on the CPU; its sums are checked, no code is run.

    Args:
        opened: the file, where it is open already.

    Raises:
        CheckpointError: it is damaged, or something else.
    """
    try:
        with zipfile.ZipFile(opened or path) as members:
            broken = members.testzip()
        if broken is not None:
            raise ValueError(f"the sum of {broken} does not fit")
        if opened is not None:
            opened.seek(0)
            content = torch.load(opened, map_location="cpu", weights_only=True)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # Bytes of any content reach the readers of zip and pickle, which raise whatever they stumble over.
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise damaged(path, reason) from error
    if not isinstance(content, dict):
        raise damaged(path, f"it holds {type(content).__name__}, no state")
    for name, kind in _PARTS.items():
        if not isinstance(content.get(name), kind):
            raise damaged(path, f"its {name} is {type(content.get(name)).__name__}")
    return content


def damaged(path: Path, reason: str) -> CheckpointError:
    """The one line about a state that cannot be used."""
    return CheckpointError(
        f"{path} is damaged ({reason}); restore it, or remove {path.parent.parent} and train again"
    )
