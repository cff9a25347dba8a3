"""The saved state of a training: written whole or not at all, read back whole or refused, one run at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import nn

from data_prep.errors import quoted
from data_prep.lock import exclusive
from data_prep.shards.atomic import read_bounded, remove_leftovers, replacing
from driving_xai import checkpoint
from driving_xai.errors import CheckpointError
from driving_xai.training import logs
from driving_xai.training.processes import rank, was_restarted
from driving_xai.unfinished import BEST, LAST, RECORDED, RESUME, damaged, load_saved

_MOST_CONFIG_BYTES = 2**24

EXTENDED = "extended"
"""In config.json: of each time that more epochs were asked for, the `epochs` before and the whole epochs done by then."""


class Start(NamedTuple):
    """Where a training begins."""

    state: Path | None
    """The file to continue from; None starts anew."""
    config: Mapping[str, Any]
    """With the history of a run that was extended."""


@contextmanager
def begun(out: Path, config: Mapping[str, Any], resume: bool) -> Iterator[Start]:
    """Begins a training in `out`, or goes on with it, and keeps other runs out of it meanwhile.

    The file to continue from is checked: it is whole and belongs to this configuration. A resumed run may have more
    epochs than it was begun with: those that are done stay as they are, and the others follow the schedule of the new
    length. Any other difference is refused by name. Temporary files that a killed run left are removed. A process that
    torchrun started again resumes. Of several processes the first locks and checks for all.

    Raises:
        CheckpointError: `resume` without a run or with another configuration, a run that is there already,
            or a damaged file.
        DataError: another run is writing there.
    """
    recorded = out / RESUME / RECORDED
    if was_restarted():
        resume = recorded.exists()
    if rank() > 0:  # The first may have begun already.
        last = out / RESUME / LAST
        yield Start(last if resume and last.exists() else None, config)
        return
    with exclusive(out):
        state = _state(out, checkpoint.as_json(config), resume)
        config = {**config, **_history(recorded, config)} if resume else config
        for folder in (out, out / RESUME, out / logs.FOLDER / logs.RUN):
            remove_leftovers(folder)
        # The other processes of this training, which the lock does not hold back, may be writing features by now.
        remove_leftovers(out / "features", whose="ended")
        if not resume or _recorded(recorded) != json.loads(checkpoint.as_json(config)):
            recorded.parent.mkdir(parents=True, exist_ok=True)
            with replacing(recorded) as temporary:
                temporary.write_text(checkpoint.as_json(config))
        yield Start(state, config)


def _history(recorded: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the run's configuration says of its extensions, this one's included; empty without any."""
    history = list(_recorded(recorded).get(EXTENDED, []))
    last = recorded.parent / LAST
    for change in _changes(recorded, checkpoint.as_json(config)):
        if change.extends:
            done = load_saved(last)["epoch"] + 1 if last.exists() else 0
            history.append({"epochs": change.old, "after_epoch": done})
    return {EXTENDED: history} if history else {}


def _state(out: Path, wanted: str, resume: bool) -> Path | None:
    """What a training in `out` goes on from."""
    last, best, recorded = (out / RESUME / name for name in (LAST, BEST, RECORDED))
    if not resume:
        if (out / checkpoint.CONFIG).exists() or recorded.exists():
            raise CheckpointError(
                f"{out} already holds a training run; continue it with --resume or choose a new OUT"
            )
        return None
    if not recorded.exists():
        raise CheckpointError(f"{out} holds no interrupted training; run without --resume")
    changes = _changes(recorded, wanted)
    refused = [change for change in changes if not change.extends]
    if refused:
        raise CheckpointError(
            f"{out} was trained with another configuration or data: {'; '.join(map(str, refused[:3]))}"
            f"{f'; and {len(refused) - 3} more' if len(refused) > 3 else ''}; use the same, or a new OUT"
        )
    if not last.exists():
        return None
    for file in (last, best):
        if file.exists():
            load_saved(file)
    return last


_ABSENT = "not there"


class _Change(NamedTuple):
    """A setting that a resumed run has otherwise than the run that it continues."""

    name: str
    """Dotted, as in config.json."""
    old: Any
    new: Any

    @property
    def extends(self) -> bool:
        """Whether it only adds epochs."""
        return (
            self.name == "training.epochs" and type(self.old) is type(self.new) is int and self.old < self.new
        )

    def __str__(self) -> str:
        hint = " (it can only be raised)" if self.name == "training.epochs" else ""
        return f"{self.name} was {quoted(self.old)} and is {quoted(self.new)}{hint}"


def _changes(recorded: Path, wanted: str) -> list[_Change]:
    """What differs between the configuration that a run was begun with and the one asked for."""
    old, new = _recorded(recorded), json.loads(wanted)
    return list(_differing({**old, EXTENDED: None}, {**new, EXTENDED: None}, ""))


def _recorded(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bounded(file, most=_MOST_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise damaged(file, str(error).splitlines()[0]) from error
    if not isinstance(content, dict):
        raise damaged(file, "it holds no configuration")
    return content


def _differing(old: Any, new: Any, name: str) -> Iterator[_Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            inner = f"{name}.{key}" if name else str(key)
            yield from _differing(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)
    elif old != new:
        yield _Change(name or "all", old, new)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoint files that are whole or absent, whatever file system the temporary folder is on.

    Lightning's own are written there and moved, which is a copy from one file system to another: a process
    killed in it leaves half a file in the place of the last good one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # An open file: where the disk is full, a path's writer aborts the process or hides the reason.
        with replacing(target) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        content = load_saved(Path(path))
        try:
            _settle(content["callbacks"], Path(path).resolve().parent)
        except (TypeError, AttributeError) as error:
            raise damaged(Path(path), f"its callbacks: {error}") from error
        return content


def _settle(callbacks: dict[str, Any], folder: Path) -> None:
    """Puts the paths of Lightning's keepers in the folder that the state was read from.

    In a folder that was moved or copied it would forget how good the best epoch was, and replace it by a worse one.
    """
    for name, kept in callbacks.items():
        if name.startswith("ModelCheckpoint"):
            kept["dirpath"] = str(folder)
            for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                kept[key] = str(folder / Path(kept[key]).name) if kept.get(key) else ""
            best = kept.get("best_k_models", {})
            kept["best_k_models"] = {str(folder / Path(file).name): value for file, value in best.items()}


def load_weights(module: nn.Module, content: Mapping[str, Any], path: Path) -> None:
    """Loads the weights of a state into a module.

    Args:
        content: what `load_saved` gave.
        path: where it was, for messages.

    Raises:
        CheckpointError: they are of another module.
    """
    try:
        module.load_state_dict(content["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise damaged(path, " ".join(str(error).split())[:160]) from error
