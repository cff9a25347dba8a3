"""How fast steering trains, and how much of it waits for data: frames kept on the device, and read for every step.

    python tests/benchmarks/bench_training.py SHARDS [--hidden-size 64] [--rounds 3] [--device cpu]

Both run by turns in one process, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch

from driving_xai.models.steering import SteeringConfig
from driving_xai.training.forecast import forecast
from driving_xai.training.recipe import Device
from driving_xai.training.steering import SteeringTraining, recipe
from driving_xai.training.throughput import Speed

CASES = {"kept on the device": 2048, "read for every step": 0}
"""What they keep, in MiB."""
DRIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "udacity_ch2_001"


def measured(shards: Path, how: SteeringTraining, *, rounds: int, device: Device) -> dict[str, Speed]:
    """The medians of each case."""
    found: dict[str, list[Speed]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, keep_mib in CASES.items():
            speed = forecast(
                recipe(shards, shards, replace(how, keep_mib=keep_mib), device=device), device=device
            ).speed
            assert speed is not None
            found[name].append(speed)
    return {name: Speed(*map(median, zip(*speeds, strict=True))) for name, speeds in found.items()}


def run(shards: Path, hidden_size: int, batch_size: int, rounds: int, device: Device) -> dict[str, Speed]:
    """Measures and prints both cases."""
    how = SteeringTraining(model=SteeringConfig(hidden_size=hidden_size), batch_size=batch_size)
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__} with "
        f"{torch.get_num_threads()} threads, device {device}, load {os.getloadavg()[0]:.1f}"
    )
    speeds = measured(shards, how, rounds=rounds, device=device)
    for name, speed in speeds.items():
        print(f"{name:20} {speed.frames_per_s:8.1f} frames/s, {speed.data_wait_share:6.2%} waiting for data")
    return speeds


@pytest.mark.bench
def test_training_hardly_waits_for_data(tmp_path: Path) -> None:
    if not DRIVE.is_dir():
        pytest.skip("needs the real driving data in ../shared/data")
    from data_prep.prepare import PrepConfig, prepare

    prepare(PrepConfig(reader="udacity-csv", source=DRIVE), tmp_path / "shards")
    speeds = run(tmp_path / "shards", 64, 4, 3, "cpu")
    assert speeds["kept on the device"].data_wait_share < 0.1


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=("auto", "cpu", "cuda"))
    given = parser.parse_args(arguments)
    run(given.shards, given.hidden_size, given.batch_size, given.rounds, given.device)


if __name__ == "__main__":
    main()
