"""How fast a drive plays: scoring alone, then the whole replay, stage by stage.

    python tests/benchmarks/bench_replay.py [--seconds 20] [--checkpoint DIR] [--device cpu]

Runs on 640x480 frames of Udacity's CH2_001 in ../shared/data, with the full-size model of the paper
(untrained: weights do not change the time) unless a checkpoint is given.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import pytest
import torch

from data_prep.decoding import Dropped
from data_prep.geometry import Geometry
from data_prep.schema import VEHICLES
from driving_xai import checkpoint as checkpoints
from driving_xai.checkpoint import Checkpoint
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.replay.background import StageTimes
from driving_xai.replay.config import ReplayConfig
from driving_xai.replay.player import replay
from driving_xai.replay.session import Session

DRIVE = Path(__file__).resolve().parents[3] / "shared" / "data" / "udacity_ch2_001_640x480"
GEOMETRY, CAR = Geometry(crop_top=1 / 3), VEHICLES["lincoln-mkz"]
STAGES = ("decode", "model", "explain", "score", "draw", "encode")


def full_size(folder: Path, device: str, **changes: int) -> Checkpoint:
    """The paper's architecture, untrained."""
    torch.manual_seed(0)
    config = SteeringConfig(**changes)
    content = {
        "kind": "steering",
        "model": asdict(config),
        "input": {"geometry": asdict(GEOMETRY), "vehicle": asdict(CAR), "frame_rate_hz": 20},
        "data": {},
    }
    checkpoints.save(folder, SteeringModel(config), content, {})
    return checkpoints.load(folder, device=device)


def scoring_ms(
    checkpoint: Checkpoint, drive: Path, config: ReplayConfig, warm_up: int = 10
) -> dict[str, float]:
    """Milliseconds a frame of predicting, explaining and scoring alone: nothing is drawn or written."""
    times = StageTimes()
    session = Session.open(checkpoint, drive, None, config)
    predict, frames = session.predictor(times), list(session.inputs(times, Dropped(config.policy)))
    with session.scoring(times) as submit:
        for scored in [submit(predict(*each)) for each in frames[:warm_up]]:
            scored.result()
        times.seconds.clear()
        begun = time.perf_counter()
        for scored in [submit(predict(*each)) for each in frames[warm_up:]]:
            scored.result()
        count, whole = len(frames) - warm_up, time.perf_counter() - begun
    spent = {stage: 1e3 * seconds / count for stage, seconds in times.seconds.items()}
    return {**spent, "whole": 1e3 * whole / count}


def replay_ms(checkpoint: Checkpoint, drive: Path, out: Path, **options: object) -> dict[str, float]:
    """Milliseconds a frame of each stage of a replay, and of the whole on the clock."""
    times = StageTimes()
    begun = time.perf_counter()
    done = replay(checkpoint, drive, out, ReplayConfig(**options), times=times)  # type: ignore[arg-type]
    whole = time.perf_counter() - begun
    spent = {stage: 1e3 * times.seconds.get(stage, 0.0) / done.frames for stage in STAGES}
    return {**spent, "whole": 1e3 * whole / done.frames}


def report(title: str, spent: dict[str, float]) -> None:
    print(f"\n{title}: {1e3 / spent['whole']:.1f} frames/s")
    for stage, milliseconds in spent.items():
        print(f"  {stage:8} {milliseconds:7.2f} ms a frame")


def describe_machine(device: str) -> None:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    print(
        f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, OpenCV {cv2.__version__}, "
        f"device {device}, load {os.getloadavg()[0]:.1f}"
    )


def run(
    seconds: float, path: Path | None, device: str, drive: Path = DRIVE, warm_up: int = 10
) -> dict[str, dict[str, float]]:
    """Measures and prints everything."""
    describe_machine(device)
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = (
            full_size(Path(folder) / "model", device)
            if path is None
            else checkpoints.load(path, device=device)
        )
        out, clip = Path(folder) / "v.mp4", {"end_s": seconds}
        for title, every in (("no control", 0), ("control on every frame", 1)):
            # With so many frames between two controls only the first frame, of the warm-up, has one.
            config = ReplayConfig(control_every=every or 10**6, end_s=min(seconds, 4.0))
            measured[f"scoring, {title}"] = scoring_ms(checkpoint, drive, config, warm_up)
        measured["replay, veryfast"] = replay_ms(checkpoint, drive, out, **clip)
        measured["replay, ultrafast"] = replay_ms(checkpoint, drive, out, preset="ultrafast", **clip)
        measured["replay, not scored"] = replay_ms(checkpoint, drive, out, score=False, **clip)
    for title, spent in measured.items():
        report(title, spent)
    return measured


@pytest.mark.bench
def test_a_drive_plays_faster_than_its_camera() -> None:
    if not DRIVE.is_dir():
        pytest.skip("needs the real driving data in ../shared/data")
    measured = run(10.0, None, "cpu")
    assert 1e3 / measured["replay, veryfast"]["whole"] > 20, "the camera's own rate, on a quiet machine"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    if not DRIVE.is_dir():
        raise SystemExit(f"{DRIVE} is absent; nothing to measure")
    run(given.seconds, given.checkpoint, given.device)


if __name__ == "__main__":
    main()
