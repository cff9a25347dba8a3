"""Distributed evaluation under torchrun: each process scores every n-th batch, the first joins the results.

Source for the launcher's environment: torchrun, https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

_LONGEST_WAIT = timedelta(days=7)
"""For the slowest process; a process that dies ends the others through its launcher."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those that share a run.

    Args:
        rank: of this process, from 0.
        world_size: how many there are.
        barrier: returns when every process has called it.

    Example:
        >>> [World(rank=1, world_size=3).owns(batch) for batch in range(4)]
        [False, True, False, False]
    """

    rank: int = 0
    world_size: int = 1
    barrier: Callable[[], object] = lambda: None

    def owns(self, batch: int) -> bool:
        """Whether the batch of this number is for this process."""
        return batch % self.world_size == self.rank

    @property
    def is_main(self) -> bool:
        """Whether this process opens the run and joins its parts."""
        return self.rank == 0


ALONE = World()


@contextmanager
def launched_world() -> Iterator[World]:
    """The processes that torchrun started together; one without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    # gloo: only the ends of the work are agreed on, and that must also go without a GPU.
    dist.init_process_group("gloo", timeout=_LONGEST_WAIT)
    try:
        yield World(rank=dist.get_rank(), world_size=dist.get_world_size(), barrier=lambda: dist.barrier())
    finally:
        dist.destroy_process_group()


def local_device(device: str) -> str:
    """The GPU of this process among those on its machine; a CPU is shared.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.

    Example:
        >>> local_device("cpu")
        'cpu'
    """
    local = os.environ.get("LOCAL_RANK")
    return device if local is None or device != "cuda" else f"cuda:{local}"
