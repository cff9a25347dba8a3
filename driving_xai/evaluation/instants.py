"""The instants of a route with their clean past: one sequential pass, handed out in batches.

The past is the model's state, any nest of tensors in tuples, named tuples, lists and dictionaries.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from driving_xai.data.drives import Route, Run
from driving_xai.errors import UnsupportedModelError
from driving_xai.models.declared import takes_windows
from driving_xai.types import Attention, Frames, RecurrentModel, Scores

_FRAMES_PER_READ = 64


class Instants(NamedTuple):
    """Frames with the state that the frames before them left, h_{t-1}."""

    rows: Int64[np.ndarray, " B"]
    """Positions in the route's index."""
    frames: Frames
    past: Any
    """The model's state, a nest of tensors whose leading dimension is B."""
    clean: Scores
    """The prediction for the unedited frame."""
    earlier: tuple[Instants, ...] = ()
    """The frames before, the oldest first, where windows are walked."""

    def one(self, place: int) -> Instants:
        """One of them, by its place."""
        return self.part(slice(place, place + 1))

    def part(self, places: slice) -> Instants:
        """Some of them, by their places."""
        return Instants(
            self.rows[places],
            self.frames[places],
            select(self.past, places),
            self.clean[places],
            tuple(each.part(places) for each in self.earlier),
        )


def walk(
    model: RecurrentModel[Any],
    route: Route,
    runs: Sequence[Run],
    *,
    batch_size: int,
    every: int = 1,
    window: int = 1,
    device: torch.device | str = "cpu",
    wanted: Sequence[bool] | None = None,
) -> Iterator[Instants]:
    """Drives each run once from start to end, many side by side, and yields its instants.

    A run's first frame starts the state; it has no past and is not yielded. Of the others comes every
    `every`-th, counted from the run's start. Side by side, runs are mixed in a batch: `rows` tells. Of runs side by
    side only the last batch may be a short one.

    Args:
        model: in eval mode.
        route: reads the frames.
        runs: unbroken stretches of it.
        batch_size: instants in a batch, and most runs driven side by side.
        every: see above.
        window: frames up to and with an instant, which come with it; an instant with fewer behind it is not yielded.
        device: of the model.
        wanted: which of the batches of `rows_of_batches` are yielded, all without it. Runs side by side are driven
            as far as the last of theirs, and not at all if there is none.

    Raises:
        UnsupportedModelError: the model's state is no nest of tensors with the drives first.
    """
    done = 0
    for together in _side_by_side(runs, batch_size):
        batches = -(-instants_of(together, every, window) // batch_size)
        chosen = [True] * batches if wanted is None else wanted[done : done + batches]
        done += batches
        last = max((at for at, is_wanted in enumerate(chosen, start=1) if is_wanted), default=0)
        walked = (
            _walk_together(model, route, together, batch_size, every, window, device) if last else iter(())
        )
        yield from itertools.compress(itertools.islice(walked, last), chosen)


def rows_of_batches(
    runs: Sequence[Run], *, batch_size: int, every: int = 1, window: int = 1
) -> Iterator[Int64[np.ndarray, " B"]]:
    """The rows of each batch that `walk` yields, without driving.

    Args:
        runs: see `walk`.
        batch_size: see `walk`.
        every: see `walk`.
        window: see `walk`.
    """
    for together in _side_by_side(runs, batch_size):
        instants = range(_first(every, window), len(together[0]), every)
        rows = np.array([run.rows[t] for t in instants for run in together if len(run) > t])
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


def _side_by_side(runs: Sequence[Run], most: int) -> Iterator[Sequence[Run]]:
    longest_first = sorted(runs, key=len, reverse=True)
    for start in range(0, len(runs), most):
        yield longest_first[start : start + most]


def _first(every: int, window: int) -> int:
    """The time of a run's first instant; the frame of time 0 starts the state and is in no window."""
    return every * -(-window // every)


def instants_of(runs: Sequence[Run], every: int = 1, window: int = 1) -> int:
    """How many instants `walk` yields in all."""
    return sum(len(range(_first(every, window), len(run), every)) for run in runs)


def _walk_together(
    model: RecurrentModel[Any],
    route: Route,
    runs: Sequence[Run],
    batch_size: int,
    every: int,
    window: int,
    device: torch.device | str,
) -> Iterator[Instants]:
    """`runs` are ordered from the longest on, so that those that end leave from the back."""
    readers = [_frames(route, run) for run in runs]
    first, recent = _first(every, window), deque[Instants](maxlen=window)
    pending: list[Instants] = []
    held = 0
    state: Any = None
    t = 0
    while t < len(runs[0]):
        alive = sum(len(run) > t for run in runs)
        # As long as the same runs go on; no more frames at once than in a batch of instants.
        count = min(max(1, batch_size // alive), len(runs[alive - 1]) - t)
        read = [torch.stack(list(itertools.islice(reader, count))) for reader in readers[:alive]]
        windows = torch.stack(read).to(device).float() / 255
        past = None if t == 0 else select(state, slice(alive))
        for frames, (clean, _, state) in zip(windows.unbind(1), advance(model, windows, past), strict=True):
            if t == 0:
                require_drives_first(state, alive)
            else:
                recent.append(Instants(np.array([run.rows[t] for run in runs[:alive]]), frames, past, clean))
            if t >= first and t % every == 0:
                *before, now = (each.part(slice(alive)) for each in recent)
                pending.append(now._replace(earlier=tuple(before)))
                held += alive
                if held >= batch_size:
                    joined, held = _joined(pending), held - batch_size
                    yield joined.part(slice(batch_size))
                    pending = [joined.part(slice(batch_size, None))] if held else []
            past = state
            t += 1
    if pending:
        yield _joined(pending)


def advance(
    model: RecurrentModel[Any], windows: Float[Tensor, "B T 3 H W"], past: Any
) -> list[tuple[Scores, Attention | None, Any]]:
    """The scores, the attention and the state after each of T frames of B drives.

    Args:
        model: one that takes windows encodes all frames at once; any other goes frame by frame.
        windows: consecutive frames of each drive.
        past: the state before them; None starts the drives.
    """
    # Not inference_mode: gradient explanations need a state that may take part in a graph.
    with torch.no_grad():
        if takes_windows(model):
            return list(model.steps(windows, past))
        taken = []
        for frames in windows.unbind(1):
            taken.append(model.step(frames, past))
            past = taken[-1][2]
        return taken


def _frames(route: Route, run: Run) -> Iterator[UInt8[Tensor, "3 H W"]]:
    for start in range(0, len(run), _FRAMES_PER_READ):
        yield from route.frames(run.rows[start : start + _FRAMES_PER_READ])


def _joined(parts: Sequence[Instants]) -> Instants:
    rows, frames, pasts, clean, earlier = zip(*parts, strict=True)
    return Instants(
        np.concatenate(rows),
        torch.cat(frames),
        join(pasts),
        torch.cat(clean),
        tuple(_joined(of_one_time) for of_one_time in zip(*earlier, strict=True)),
    )


def select(state: Any, drives: slice) -> Any:
    """The state of some drives.

    Args:
        state: a nest of tensors, each with the drives first.
        drives: which.

    Example:
        >>> select({"hidden": (torch.arange(3), [])}, slice(2))
        {'hidden': (tensor([0, 1]), [])}
    """
    return _mapped(lambda tensors: tensors[0][drives], [state])


def repeated(state: Any, times: int) -> Any:
    """A state of which each drive stands several times, one after the other.

    Example:
        >>> repeated([torch.arange(2)], 2)
        [tensor([0, 0, 1, 1])]
    """
    return _mapped(lambda tensors: tensors[0].repeat_interleave(times, 0), [state])


def join(states: Sequence[Any]) -> Any:
    """One state of the drives of several.

    Args:
        states: nests of one form.

    Example:
        >>> join([(torch.tensor([1]),), (torch.tensor([2, 3]),)])
        (tensor([1, 2, 3]),)
    """
    return _mapped(torch.cat, states)


def require_drives_first(state: Any, drives: int) -> None:
    """Checks the form of a state that a model returned.

    Args:
        state: of the model's step.
        drives: that were driven side by side.

    Raises:
        UnsupportedModelError: it is no nest of tensors, or one of them has not the drives first.
    """

    def check(tensors: list[Tensor]) -> Tensor:
        shape = tuple(tensors[0].shape)
        if shape[:1] != (drives,):
            raise UnsupportedModelError(
                f"the model's state has a tensor of shape {shape} for {drives} drives; expected the drives first, "
                f"({drives}, ...): transpose it in step and at"
            )
        return tensors[0]

    _mapped(check, [state])


def _mapped(change: Callable[[list[Tensor]], Tensor], states: Sequence[Any]) -> Any:
    """A nest of the same form, each tensor made of those in its place."""
    first = states[0]
    if isinstance(first, Tensor):
        return change(list(states))
    if isinstance(first, Mapping):
        return {key: _mapped(change, [each[key] for each in states]) for key in first}
    if isinstance(first, tuple | list):
        parts = [_mapped(change, list(each)) for each in zip(*states, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    raise UnsupportedModelError(
        f"the model's state holds {type(first).__name__}; expected tensors in tuples, lists or dictionaries, "
        "each with the drives first"
    )
