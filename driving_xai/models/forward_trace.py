"""One forward pass as a record: which modules ran on which shapes, and what moved the cells of the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from driving_xai.errors import FrameSizeError
from driving_xai.models.declared import at_instant
from driving_xai.models.modes import evaluating
from driving_xai.types import Frames

_ATEN = torch.ops.aten


Kind = Literal["window", "cut", "resize", "rearrangement"]
"""A convolution or pooling; a slice or a margin; an interpolation; pixels in other places of a grid as large."""


class Run(NamedTuple):
    """One run of a module, at its end; the shapes of its first input and of its output."""

    module: nn.Module
    took: torch.Size
    gave: torch.Size


class Move(NamedTuple):
    """An operation that changes the grid, whatever module or function called it.

    Along rows and along columns, cell i of what it gives is centred on first + i * stride of the cells it takes.
    """

    took: torch.Size
    gave: torch.Size
    first: tuple[float, float]
    stride: tuple[float, float]
    kind: Kind


Record = list[Run | Move]
"""In the order in which they ended."""


@torch.no_grad()
def traced(network: nn.Module, frames: Frames) -> Record:
    """What runs in one forward pass in eval mode, modes and hooks being as before afterwards.

    Raises:
        FrameSizeError: the network does not take frames of this size.
    """
    record: Record = []
    with frames_taken(network, frames):
        _forward(network, frames, record)
    return record


@torch.no_grad()
def traced_as_far_as_it_goes(network: nn.Module, frames: Frames) -> Record:
    """As `traced`; of a network that fails, what ran before."""
    record: Record = []
    try:
        _forward(network, frames, record)
    except torch.OutOfMemoryError:
        raise
    # What networks raise at frames that they were not made for is of any type.
    except Exception:
        pass
    return record


@contextmanager
def frames_taken(network: object, frames: Frames) -> Iterator[None]:
    """Says in one line that frames have a size that the network does not take, where its own code raises that.

    Raises:
        FrameSizeError: in place of a RuntimeError or AssertionError.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise FrameSizeError(
            f"{type(network).__name__} does not take frames of {frames.shape[2]} x {frames.shape[3]} px "
            f"({reason}); give frames of the size and precision that it was made for, or driving_xai.wrap(net, size=...)"
        ) from error


def _forward(network: nn.Module, frames: Frames, record: Record) -> None:
    def remember(module: nn.Module, taken: tuple, given: object) -> None:
        if isinstance(given, Tensor) and taken and isinstance(taken[0], Tensor):
            record.append(Run(module, taken[0].shape, given.shape))

    handles = (module.register_forward_hook(remember) for module in network.modules())
    # A model of a drive scores them as the first of one.
    model: Any = at_instant(network)
    with (
        torch.inference_mode(False),
        evaluating(network),
        uncompiled(network),
        removed_after(handles),
        _Moves(record),
    ):
        model(frames.clone())


class _Moves(TorchDispatchMode):
    """Appends what changes the grid of a tensor of four dimensions."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = func(*args, **(kwargs or {}))
        how = _MOVES.get(func.overloadpacket)
        output = given[0] if isinstance(given, tuple) else given
        if how and isinstance(output, Tensor) and args[0].dim() == output.dim() == 4:
            moved = how(args[0].shape, output.shape, *args[1:])
            if moved is not None:
                self.record.append(Move(args[0].shape, output.shape, *moved))
        return given


_Moved = tuple[tuple[float, float], tuple[float, float], Kind]


def _window(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> _Moved:
    (kr, kc), (sr, sc), (pr, pc), (dr, dc) = map(_pair, (kernel, stride or kernel, padding, dilation))
    return (dr * (kr - 1) / 2 - pr, dc * (kc - 1) / 2 - pc), (sr, sc), "window"


def _convolved(_took: torch.Size, _gave: torch.Size, weight: Tensor, _bias: object, *how: Any) -> _Moved:
    stride, padding, dilation, transposed = how[:4]
    first, step, kind = _window(weight.shape[2:], stride, padding, dilation)
    if transposed:
        return (-first[0] / step[0], -first[1] / step[1]), (1 / step[0], 1 / step[1]), kind
    return first, step, kind


def _max_pooled(
    _took: torch.Size,
    _gave: torch.Size,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    *_ceil: object,
) -> _Moved:
    return _window(kernel, stride, padding, dilation)


def _mean_pooled(
    _took: torch.Size,
    _gave: torch.Size,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    *_how: object,
) -> _Moved:
    return _window(kernel, stride, padding, (1,))


def _padded(_took: torch.Size, _gave: torch.Size, margins: Sequence[int], *_value: object) -> _Moved:
    left, _, top, _ = (*margins, 0, 0, 0, 0)[:4]
    return (-float(top), -float(left)), (1, 1), "cut"


def _sliced(
    took: torch.Size,
    _gave: torch.Size,
    dim: int = 0,
    start: int | None = None,
    _end: int | None = None,
    step: int = 1,
) -> _Moved | None:
    axis = dim % 4 - 2
    if axis < 0:
        return None
    length = took[2 + axis]
    begin = min(max((start or 0) + (length if (start or 0) < 0 else 0), 0), length)
    return ((0, float(begin)), (1, step), "cut") if axis else ((float(begin), 0), (step, 1), "cut")


def _resized(took: torch.Size, gave: torch.Size, _size: object, corners: object = None, *_: object) -> _Moved:
    """Half a pixel stays half a pixel, unless the corners are laid on each other."""
    if corners is True:
        rows, columns = ((a - 1) / max(b - 1, 1) for a, b in zip(took[2:], gave[2:], strict=True))
        return (0, 0), (rows, columns), "resize"
    rows, columns = (a / b for a, b in zip(took[2:], gave[2:], strict=True))
    return ((rows - 1) / 2, (columns - 1) / 2), (rows, columns), "resize"


def _warped(_took: torch.Size, _gave: torch.Size, *_how: object) -> _Moved:
    return (0, 0), (1, 1), "rearrangement"


def _flipped(took: torch.Size, gave: torch.Size, dims: Sequence[int], *_: object) -> _Moved | None:
    """Not of channels, whose order is another matter."""
    return _warped(took, gave) if {dim % 4 for dim in dims} & {2, 3} else None


def _rolled(
    took: torch.Size, gave: torch.Size, _shifts: object, dims: Sequence[int] = (2, 3), *_: object
) -> _Moved | None:
    return _flipped(took, gave, dims)


def _transposed(took: torch.Size, gave: torch.Size, *dims: int) -> _Moved | None:
    return _warped(took, gave) if {dim % 4 for dim in dims} == {2, 3} else None


_MOVES: Mapping[Any, Callable[..., _Moved | None]] = {
    _ATEN.convolution: _convolved,
    _ATEN.max_pool2d_with_indices: _max_pooled,
    _ATEN.avg_pool2d: _mean_pooled,
    _ATEN.constant_pad_nd: _padded,
    _ATEN.reflection_pad2d: _padded,
    _ATEN.replication_pad2d: _padded,
    _ATEN.slice: _sliced,
    **dict.fromkeys(
        [
            *(_ATEN.upsample_bilinear2d, _ATEN.upsample_bicubic2d),
            *(_ATEN._upsample_bilinear2d_aa, _ATEN._upsample_bicubic2d_aa),
            *(_ATEN.upsample_nearest2d, _ATEN._upsample_nearest_exact2d),
            _ATEN._adaptive_avg_pool2d,
        ],
        _resized,
    ),
    _ATEN.flip: _flipped,
    _ATEN.roll: _rolled,
    _ATEN.transpose: _transposed,
    _ATEN.grid_sampler_2d: _warped,
}


def _pair(value: Sequence[int]) -> tuple[int, int]:
    return (value[0], value[-1])


@contextmanager
def removed_after(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes hooks at the end of the scope, also after a failure.

    Args:
        handles: of hooks that are registered; a generator that registers them may fail on its way, and
            those it has registered are removed.
    """
    registered: list[RemovableHandle] = []
    try:
        registered.extend(handles)
        yield
    finally:
        for handle in registered:
            handle.remove()


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Runs what `torch.compile` has compiled inside a network as it is written: compiled code calls no hooks."""
    compiled = (
        getattr(each, "_compiled_call_impl", None) is not None or "_orig_mod" in each._modules
        for each in network.modules()
    )
    if not any(compiled):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
