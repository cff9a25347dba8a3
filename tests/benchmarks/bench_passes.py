"""Forward passes of deletion and insertion, of one explained image: how many, of how many frames, how long.

    python tests/benchmarks/bench_passes.py [--steps 20] [--batch-size 64] [--repeats 20]

A small network stands for any: passes depend on the steps, the methods and the batch size only. Its seconds are those of
everything but arithmetic.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))  # for the tests' own counter

import driving_xai as dx
from driving_xai.targets import output
from driving_xai.types import Outputs
from tests.driving_xai.passes import counted

METHODS = ["gradient", "smoothgrad"]


def network() -> nn.Module:
    """Of three classes."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)
    ).eval()
    net.outputs = Outputs(kind="multiclass", names=("red", "green", "blue"))
    return net


def run(steps: int = 20, batch_size: int = 64, repeats: int = 1) -> dict[str, list[int]]:
    """The frames of each pass, by what is scored; prints a table with the median processor time in ms."""
    net, frames, maps = network(), torch.rand(1, 3, 32, 32), torch.rand(1, 32, 32)
    fractions = tuple(step / steps for step in range(steps + 1))
    curves = [
        kind(fractions=fractions, batch_size=batch_size)
        for kind in (dx.metrics.Deletion, dx.metrics.Insertion)
    ]

    def evaluated(methods: list[str]) -> Callable[[], object]:
        return lambda: dx.evaluate(net, frames, methods=methods, metrics=curves, batch_size=batch_size)

    cases: dict[str, Callable[[], object]] = {
        "Deletion": lambda: curves[0](net, frames, maps, output(0)),
        "Insertion": lambda: curves[1](net, frames, maps, output(0)),
        **{
            f"explain {name}": lambda name=name: dx.explain.build(name)(net, frames, output(0))
            for name in METHODS
        },
        "evaluate, both curves, 1 method": evaluated(METHODS[:1]),
        "evaluate, both curves, 2 methods": evaluated(METHODS),
    }
    found = {}
    for name, call in cases.items():
        with counted(net) as passes:
            call()
        found[name] = list(passes)
        took_ms = 1000 * statistics.median(
            timeit.repeat(call, timer=time.process_time, number=1, repeat=repeats)
        )
        print(f"| {name} | {len(passes)} | {sum(passes)} | {', '.join(map(str, passes))} | {took_ms:.1f} |")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    run(given.steps, given.batch_size, given.repeats)
