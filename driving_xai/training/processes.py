"""Several processes that train one model: each takes its part of every global batch.

The parts are cut so that the losses, gradients and statistics are those of one process that takes the
whole batch, but for rounding. Processes are started by Lightning on one machine, or by torchrun.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Found = TypeVar("Found")


def rank() -> int:
    """This process's number among those that train together; 0 where there is one."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def was_restarted() -> bool:
    """Whether torchrun started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


class Placement(NamedTuple):
    """Where the processes run."""

    devices: int
    """On each machine."""
    machines: int

    @property
    def processes(self) -> int:
        return self.devices * self.machines


def placement(devices: int | None) -> Placement:
    """Under torchrun the processes that it started; else `devices` of them on this machine.

    Args:
        devices: None takes torchrun's, or one.

    Raises:
        ValueError: torchrun started another number of processes.
    """
    if not torch.distributed.is_torchelastic_launched():
        return Placement(devices or 1, 1)
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if devices not in (None, everywhere):
        raise ValueError(
            f"torchrun started {everywhere} processes and devices is {devices}; leave it out, or give {everywhere}"
        )
    return Placement(here, everywhere // here)


class Part(NamedTuple):
    """One process's part of a global batch."""

    start: int
    stop: int
    total: int
    """Examples of the global batch."""
    share: float
    """The mean loss of the part times this, averaged over processes, is the mean loss of the batch."""

    @property
    def inside(self) -> slice:
        """Where the part lies in the batch."""
        return slice(self.start, self.stop)

    def share_of(self, weights: Tensor, processes: int) -> float:
        """As `share`, of a mean in which the batch's examples have these weights."""
        return 0.0 if self.share == 0 else float(weights[self.inside].sum() / weights.sum()) * processes


def whole(total: int) -> Part:
    """All of a batch."""
    return Part(0, total, total, 1.0)


def part_of(total: int, number: int, processes: int) -> Part:
    """The part of process `number`: consecutive examples, as many as of the others, or one more.

    A process for which nothing is left takes the first example again, with a share of 0: every process
    must run every step.

    Example:
        >>> [part_of(5, number, 2)[:2] for number in range(2)]
        [(0, 3), (3, 5)]
        >>> part_of(1, 1, 2)
        Part(start=0, stop=1, total=1, share=0.0)
    """
    own, more = divmod(total, processes)
    start = number * own + min(number, more)
    stop = start + own + (number < more)
    if start == stop:
        return Part(0, 1, total, 0.0)
    return Part(start, stop, total, (stop - start) / total * processes)


def as_one_batch(part: Part, processes: int) -> AbstractContextManager[Any]:
    """Inside, batch normalisation and dropout see the global batch; of one process nothing changes."""
    return nullcontext() if processes == 1 else _GlobalBatch(part)


def gathered(local: Found) -> list[Found]:
    """What each process found, by their numbers; of one process what it found itself."""
    if not torch.distributed.is_initialized():
        return [local]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, local)
    return found


def in_parts(
    rows: np.ndarray, compute: Callable[[np.ndarray], Found], *, number: int, processes: int
) -> list[Found]:
    """Results for consecutive parts of the rows, each computed by one process and known to all of them."""
    mine = np.array_split(rows, processes)[number]
    found = gathered([compute(mine)] if len(mine) else [])
    return [each for one in found for each in one]


class _GlobalBatch(TorchFunctionMode):
    """Replaces the two functions that depend on a whole batch.

    Functions and not modules, because networks have subclasses of batch normalisation with a forward of
    their own (timm's activate in it), which a conversion to `SyncBatchNorm` would lose; nor does that run
    on a CPU.
    """

    def __init__(self, part: Part) -> None:
        super().__init__()
        self._part = part

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        if func is F.dropout:
            return self._dropout(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        values = input.float()
        over = [axis for axis in range(values.dim()) if axis != 1]
        shape = [1, -1] + [1] * (values.dim() - 2)
        counts = float(self._part.share > 0)
        # Sums in float64: a sign or a quantised value further on makes a step of a rounding error.
        size = values.new_tensor([counts * values.numel() / values.shape[1]], dtype=torch.float64)
        sums = _Sum.apply(torch.cat([counts * values.sum(over, dtype=torch.float64), size]))
        size, mean = sums[-1].detach(), (sums[:-1] / sums[-1].detach()).float()
        centred = values - mean.view(shape)
        squares = _Sum.apply(counts * centred.square().sum(over, dtype=torch.float64))
        variance = (squares / size).float()
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                unbiased = squares / (size - 1).clamp_min(1)
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        scale = (variance + eps).rsqrt()
        scale = scale if weight is None else scale * weight.float()
        result = centred * scale.view(shape)
        return (result if bias is None else result + bias.float().view(shape)).to(input.dtype)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        part = self._part
        each, odd = divmod(len(input), part.stop - part.start)
        if not training or p == 0 or odd:
            return F.dropout(input, p, training, inplace)
        # Drawn for the whole batch, so that all processes, seeded alike, drop what one would.
        kept = input.new_empty(part.total * each, *input.shape[1:]).bernoulli_(1 - p).div_(1 - p)
        return input * kept[part.start * each : part.stop * each]


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _summed(gradients[0])


def _summed(value: Tensor) -> Tensor:
    value = value.clone()
    torch.distributed.all_reduce(value)
    return value
