"""What LABN at the papers' sizes costs: parameters, time in steps of a ResNet-18, and memory.

    python -m tests.benchmarks.bench_lambda [--case labn-idrid,...] [--repeats 3] [--threads 1]

A step is the forward and backward pass of one image in training mode, random weights. Each case runs in a
process of its own: first once for its memory, then in turn with steps of torchvision's resnet18 on an image of
the same size for its time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from driving_xai.models.lambda_net import LambdaAttentionBranchNetwork, LambdaConfig, LambdaResNet

RESNET18 = "resnet18"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and the side of its square image."""

    build: Callable[[], nn.Module]
    side_px: int


_IDRID = LambdaConfig()
_DEFN = LambdaConfig(stages=(1,), width=8, stem_channels=16, split=0, threshold=0.5)
_SMALLER = LambdaConfig(stages=(2, 2, 2, 2), split=4)
CASES: Mapping[str, Case] = {
    RESNET18: Case(build=lambda: torchvision.models.resnet18(num_classes=2), side_px=224),
    "lambda-resnet50": Case(build=lambda: LambdaResNet(_IDRID, classes=2), side_px=224),
    "labn-18": Case(build=lambda: LambdaAttentionBranchNetwork(_SMALLER, classes=2), side_px=224),
    "labn-idrid": Case(build=lambda: LambdaAttentionBranchNetwork(_IDRID, classes=2), side_px=224),
    "labn-idrid-512": Case(build=lambda: LambdaAttentionBranchNetwork(_IDRID, classes=2), side_px=512),
    "labn-defn": Case(build=lambda: LambdaAttentionBranchNetwork(_DEFN, classes=2), side_px=512),
}
"""labn-idrid at 224 px and labn-defn are Iida et al.'s; labn-18 has the stages and widths of a ResNet-18."""


def step(network: nn.Module, images: Tensor) -> None:
    """Forward and backward; of LABN the losses of both branches."""
    truth = torch.zeros(len(images), dtype=torch.int64)
    if isinstance(network, LambdaAttentionBranchNetwork):
        found = network.branches(images)
        loss = F.cross_entropy(found.scores, truth) + F.cross_entropy(found.branch_scores, truth)
    else:
        loss = F.cross_entropy(network(images), truth)
    network.zero_grad(set_to_none=True)
    loss.backward()


def measure(case: Case, *, repeats: int, threads: int) -> dict[str, float]:
    """Runs one case in this process, which must be new."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = case.build().train()
    images = torch.rand(1, 3, case.side_px, case.side_px)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before_mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    step(network, images)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peer = CASES[RESNET18].build().train()
    step(peer, images)
    spent: dict[nn.Module, list[float]] = {peer: [], network: []}
    for _ in range(repeats):
        for each, seconds in spent.items():
            begun = time.process_time()
            step(each, images)
            seconds.append(time.process_time() - begun)
    seconds, peer_seconds = (statistics.median(spent[each]) for each in (network, peer))
    return {
        "parameters": sum(each.numel() for each in network.parameters()),
        "seconds": seconds,
        "resnet18_seconds": peer_seconds,
        "peak_mib": peak_mib,
        "extra_mib": peak_mib - before_mib,
    }


def in_new_process(name: str, *, side_px: int, repeats: int, threads: int) -> dict[str, float]:
    options = ["--inside", str(side_px), "--case", name, "--repeats", str(repeats), "--threads", str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_lambda", *options],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def run(
    names: list[str], *, repeats: int, threads: int, side_px: int | None = None
) -> dict[str, dict[str, float]]:
    """Measures and prints everything, on images of each case's own side unless one is given."""
    print(
        f"{platform.machine()}, {threads} threads, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    measured = {}
    for name in names:
        side = side_px or CASES[name].side_px
        found = measured[name] = in_new_process(name, side_px=side, repeats=repeats, threads=threads)
        print(
            f"  {name:16} {side} px, {found['parameters']:>12,} parameters, "
            f"{found['seconds']:6.2f} s, {found['seconds'] / found['resnet18_seconds']:6.2f} steps of ResNet-18 "
            f"of {found['resnet18_seconds']:.2f} s, peak {found['peak_mib']:,.0f} MiB, "
            f"{found['extra_mib']:,.0f} of them for the step",
            flush=True,
        )
    return measured


def test_every_case_makes_a_step_on_a_small_image(one_thread: None) -> None:
    for name, case in CASES.items():
        network = case.build().train()
        step(network, torch.rand(2, 3, 64, 64))
        assert all(each.grad is None or each.grad.isfinite().all() for each in network.parameters()), name
        assert any(each.grad is not None for each in network.parameters()), name


@pytest.mark.slow
def test_a_case_runs_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(["labn-defn"], repeats=1, threads=1, side_px=64)["labn-defn"]
    assert found["parameters"] == sum(each.numel() for each in CASES["labn-defn"].build().parameters())
    assert min(found["seconds"], found["resnet18_seconds"], found["extra_mib"]) > 0
    assert "labn-defn" in capsys.readouterr().out


@pytest.mark.bench
def test_a_step_of_labn_fits_an_ordinary_machine() -> None:
    found = run(["labn-idrid"], repeats=1, threads=1)["labn-idrid"]
    assert found["seconds"] < 20 * found["resnet18_seconds"]
    assert found["extra_mib"] < 600


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", default=",".join(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--inside", type=int, metavar="SIDE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = given.case.split(",")
    if given.inside:
        case = replace(CASES[names[0]], side_px=given.inside)
        print(json.dumps(measure(case, repeats=given.repeats, threads=given.threads)))
    else:
        run(names, repeats=given.repeats, threads=given.threads)


if __name__ == "__main__":
    main()
