"""The instants of a route with their clean past: one sequential pass, handed out in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from driving_xai.data.drives import Route, Run
from driving_xai.types import Frames, RecurrentModel, Scores

_FRAMES_PER_READ = 64


class Instants(NamedTuple):
    """Frames with the state that the frames before them left, h_{t-1}."""

    rows: Int64[np.ndarray, " B"]
    """Positions in the route's index."""
    frames: Frames
    past: Any
    """The model's state, a named tuple of tensors whose leading dimension is B."""
    clean: Scores
    """The prediction for the unedited frame."""


def walk(
    model: RecurrentModel[Any],
    route: Route,
    runs: Sequence[Run],
    *,
    batch_size: int,
    every: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[Instants]:
    """Drives each run once from start to end, many side by side, and yields its instants.

    A run's first frame starts the state; it has no past and is not yielded. Of the others comes every
    `every`-th, counted from the run's start. Side by side, runs are mixed in a batch: `rows` tells.

    Args:
        batch_size: most instants in a batch, and most runs driven side by side.
    """
    longest_first = sorted(runs, key=len, reverse=True)
    for start in range(0, len(runs), batch_size):
        together = longest_first[start : start + batch_size]
        yield from _walk_together(model, route, together, batch_size, every, device)


def instants_of(runs: Sequence[Run], every: int = 1) -> int:
    """How many instants `walk` yields in all."""
    return sum((len(run) - 1) // every for run in runs)


def _walk_together(
    model: RecurrentModel[Any],
    route: Route,
    runs: Sequence[Run],
    batch_size: int,
    every: int,
    device: torch.device | str,
) -> Iterator[Instants]:
    """`runs` are ordered from the longest on, so that those that end leave from the back."""
    readers = [_frames(route, run) for run in runs]
    pending: list[Instants] = []
    state = None
    for t in range(len(runs[0])):
        alive = sum(len(run) > t for run in runs)
        frames = torch.stack([next(reader) for reader in readers[:alive]]).to(device).float() / 255
        past = None if state is None else type(state)(*(part[:alive] for part in state))
        # Not inference_mode: gradient explanations need a state that may take part in a graph.
        with torch.no_grad():
            clean, _, state = model.step(frames, past)
        if past is None or t % every:
            continue
        if sum(len(each.rows) for each in pending) + alive > batch_size:
            yield _joined(pending)
            pending = []
        pending.append(Instants(np.array([run.rows[t] for run in runs[:alive]]), frames, past, clean))
    if pending:
        yield _joined(pending)


def _frames(route: Route, run: Run) -> Iterator[UInt8[Tensor, "3 H W"]]:
    for start in range(0, len(run), _FRAMES_PER_READ):
        yield from route.frames(run.rows[start : start + _FRAMES_PER_READ])


def _joined(parts: Sequence[Instants]) -> Instants:
    rows, frames, pasts, clean = zip(*parts, strict=True)
    past = type(pasts[0])(*(torch.cat(tensors) for tensors in zip(*pasts, strict=True)))
    return Instants(np.concatenate(rows), torch.cat(frames), past, torch.cat(clean))
