"""Processes that share one scoring run: each takes every n-th batch, the first joins what they wrote.

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
class Team:
    """This process among those that share a run."""

    rank: int = 0
    size: int = 1
    wait_for_all: Callable[[], object] = lambda: None
    """Returns when every process of the team has called it."""

    def takes(self, number: int) -> bool:
        """Whether a batch is this process's."""
        return number % self.size == self.rank

    @property
    def leads(self) -> bool:
        """Whether this process opens the run and joins its parts."""
        return self.rank == 0


ALONE = Team()


@contextmanager
def launched_team() -> Iterator[Team]:
    """The processes that torchrun started together; alone without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    # gloo: only the ends of the work are agreed on, and that must also go without a GPU.
    dist.init_process_group("gloo", timeout=_LONGEST_WAIT)
    try:
        yield Team(rank=dist.get_rank(), size=dist.get_world_size(), wait_for_all=lambda: dist.barrier())
    finally:
        dist.destroy_process_group()


def local_device(device: str) -> str:
    """The GPU of this process among those on its machine; a CPU is everyone's."""
    local = os.environ.get("LOCAL_RANK")
    return device if local is None or device != "cuda" else f"cuda:{local}"
