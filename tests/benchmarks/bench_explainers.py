"""How fast explanations and their deletion curves are, and how much of the time is not the network's.

    python tests/benchmarks/bench_explainers.py [--frames 1000] [--masks 4000]

Three measurements: the deletion curves of a drive under five explainers, with the time every method
takes for a frame; RISE on a ResNet-50, with the memory it adds; LIME's fit. Weights are random, which
does not change the time. Shares are of processor time, so that other work on the machine does not count;
seconds on the clock stand beside it.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from driving_xai.explain.lime import LIME, Grid
from driving_xai.explain.options import OptionsOf
from driving_xai.explain.perturbation import RISE
from driving_xai.explain.registry import fitted
from driving_xai.metrics.curves import deletion, rank
from driving_xai.models.capabilities import network_of
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.targets import magnitude, output
from driving_xai.types import FrameModel, Frames

FIVE = ("sign-attention", "grad-cam", "gradient", "gradient-x-input", "visual-backprop")
SLOWER = ("sign-attention-filtered", "smoothgrad", "integrated-gradients", "occlusion", "lime", "rise")
FRACTIONS = [step / 100 for step in range(26)]
BATCH = 32


class Spent(NamedTuple):
    """Seconds."""

    clock: float = 0.0
    processor: float = 0.0

    @classmethod
    def now(cls) -> Spent:
        return cls(time.perf_counter(), time.process_time())

    def since(self, begun: Spent) -> Spent:
        return Spent(self.clock - begun.clock, self.processor - begun.processor)

    def plus(self, other: Spent) -> Spent:
        return Spent(self.clock + other.clock, self.processor + other.processor)

    def __str__(self) -> str:
        return f"{self.processor:.1f} s of processor time ({self.clock:.1f} s on the clock)"


class Timed:
    """A frame model that knows how much processor time its forward passes have taken."""

    def __init__(self, model: FrameModel) -> None:
        self.model, self.outputs, self.network = model, model.outputs, network_of(model)
        self.seconds = 0.0

    def __call__(self, frames: Frames) -> Tensor:
        begun = time.process_time()
        scores = self.model(frames)
        self.seconds += time.process_time() - begun
        return scores

    def attention(self, frames: Frames) -> Tensor:
        return self.model.attention(frames)  # type: ignore[attr-defined]


class Classifier(nn.Module):
    """A network of torchvision's as a frame model."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.outputs = network, None

    def forward(self, frames: Frames) -> Tensor:
        return self.network(frames)


def curves_of_a_route(frames: int, config: SteeringConfig = SteeringConfig()) -> None:  # noqa: B008 - frozen
    """Explains, ranks and deletes: `frames` frames, 25 steps, five explainers; one clean pass shared."""
    torch.manual_seed(0)
    model = SteeringModel(config).eval().fold_normalisation()
    explainers = {name: fitted(name, model, batch_size=BATCH) for name in FIVE}
    explained, curves, network = Spent(), Spent(), 0.0
    with torch.no_grad():
        state = model.step(torch.rand(BATCH, 3, config.height, config.width), None)[2]
    for start in range(0, frames, BATCH):
        batch = torch.rand(min(BATCH, frames - start), 3, config.height, config.width)
        view = Timed(model.at(type(state)(*(part[: len(batch)] for part in state))))
        begun = Spent.now()
        maps = torch.stack([explain(view.network, batch, magnitude) for explain in explainers.values()], 1)
        explained = explained.plus(Spent.now().since(begun))
        begun = Spent.now()
        ranks = rank(maps.flatten(0, 1), torch.Generator().manual_seed(0)).unflatten(0, maps.shape[:2])
        deletion(view, batch, ranks, FRACTIONS, batch_size=BATCH)
        curves, network = curves.plus(Spent.now().since(begun)), network + view.seconds
    print(
        f"{frames} frames, 25 steps, {len(FIVE)} explainers: explaining {explained}; ranking and curves {curves}, "
        f"of it outside the network {100 * (1 - network / curves.processor):.1f} %"
    )


def each_method(
    config: SteeringConfig = SteeringConfig(),  # noqa: B008 - frozen
    options: OptionsOf | None = None,
) -> None:
    """Every method on one frame of a drive, and one forward pass of the same frame to compare with."""
    torch.manual_seed(0)
    model = SteeringModel(config).eval().fold_normalisation()
    batch = torch.rand(BATCH, 3, config.height, config.width)
    with torch.no_grad():
        state = model.step(batch[:1], None)[2]
        view = model.at(state)
        view(batch)
        begun = Spent.now()
        for _ in range(5):
            view(batch)
        forward = Spent.now().since(begun).processor / 5 / BATCH
    print(f"one frame of a batch of {BATCH} forward: {1e3 * forward:.2f} ms of processor time")
    for name in (*FIVE, *SLOWER):
        explain = fitted(name, model, batch_size=BATCH, options=(options or {}).get(name))
        timed = Timed(view)
        if name not in SLOWER:
            explain(timed, batch[:1], magnitude)
        timed.seconds, repeats = 0.0, 1 if name in SLOWER else 20
        begun = Spent.now()
        for _ in range(repeats):
            explain(timed, batch[:1], magnitude)
        spent = Spent.now().since(begun).processor
        print(
            f"  {name:24} {1e3 * spent / repeats:8.1f} ms a frame = {spent / repeats / forward:7.1f} such passes; "
            f"{100 * timed.seconds / spent:5.1f} % of it forward passes"
        )


def rise_on_resnet(masks: int, *, name: str = "resnet50", side_px: int = 224) -> tuple[float, float]:
    """Seconds and memory of RISE; returns the share outside the network and the extra MiB."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    network = get_model(name).eval().to(memory_format=torch.channels_last)
    model, frame = Timed(Classifier(network).eval()), torch.rand(1, 3, side_px, side_px)
    with torch.no_grad():
        # What the network itself needs for a batch is there before the measurement.
        for _ in range(3):
            model(torch.rand(8, 3, side_px, side_px))
    model.seconds, before, begun = 0.0, _peak_mib(), Spent.now()
    saliency = RISE(samples=masks, batch_size=8)(model, frame, output(0))
    spent = Spent.now().since(begun)
    assert saliency.isfinite().all()
    outside, extra = spent.processor - model.seconds, _peak_mib() - before
    print(
        f"RISE, {masks} masks, {name} at {side_px} x {side_px}, batch 8: {spent}; outside the network {outside:.2f} s "
        f"= {100 * outside / spent.processor:.2f} %; extra memory {extra:.0f} MiB"
    )
    return outside / spent.processor, extra


class Averages:
    """The cheapest frame model: what is left of the time is the method's own."""

    outputs = None

    def __call__(self, frames: Frames) -> Tensor:
        return frames.mean((2, 3))


def rise_alone(masks: int) -> float:
    """RISE without a network to speak of; returns the extra MiB."""
    frame, before, begun = torch.rand(1, 3, 224, 224), _peak_mib(), Spent.now()
    RISE(samples=masks, batch_size=8)(Averages(), frame, output(0))
    extra = _peak_mib() - before
    print(f"RISE, {masks} masks, no network: {Spent.now().since(begun)}; extra memory {extra:.0f} MiB")
    return extra


def lime_fit() -> float:
    """Processor seconds of LIME's fit of 1,000 patterns of 49 patches, rendering the patterns not counted."""
    explain, patches = LIME(segmentation=Grid()), 49
    values, times = torch.rand(1000, dtype=torch.float64), []
    for _ in range(5):
        begun = time.process_time()
        patterns = explain.patterns(patches)
        _ = explain.solver(patterns) @ values
        times.append(time.process_time() - begun)
    print(
        f"LIME, 1,000 patterns of {patches} patches: draw and fit {1e3 * sorted(times)[2]:.1f} ms (median of 5)"
    )
    return sorted(times)[2]


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def describe_machine() -> None:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    print(
        f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )


def test_every_measurement_runs_at_a_small_size(capsys: pytest.CaptureFixture[str]) -> None:
    small = SteeringConfig(hidden_size=8)
    few = {"rise": {"masks": 8}, "lime": {"samples": 8}, "smoothgrad": {"samples": 2}}
    describe_machine()
    assert lime_fit() < 60
    outside, _ = rise_on_resnet(8, name="resnet18", side_px=64)
    assert 0 < outside < 1
    each_method(small, {**few, "occlusion": {"window_px": [40, 40], "stride_px": [40, 40]}})
    curves_of_a_route(2, small)
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in (*FIVE, *SLOWER))
    assert "2 frames, 25 steps, 5 explainers" in printed


@pytest.mark.bench
def test_explanations_cost_little_more_than_their_passes() -> None:
    describe_machine()
    assert lime_fit() <= 0.1
    assert rise_alone(4000) <= 100
    outside, extra_mib = rise_on_resnet(400)
    assert outside <= 0.02
    assert extra_mib <= 100


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--masks", type=int, default=4000)
    given = parser.parse_args(arguments)
    describe_machine()
    lime_fit()
    rise_alone(given.masks)
    rise_on_resnet(given.masks)
    each_method()
    curves_of_a_route(given.frames)


if __name__ == "__main__":
    main()
