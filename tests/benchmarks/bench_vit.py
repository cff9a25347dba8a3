"""What SNNA costs on a CPU: time in plain forward passes of the same run, and memory beyond the model.

    python tests/benchmarks/bench_vit.py [--size 360x640] [--case snna,...] [--repeats 3] [--threads 2]

ViT-S/8 with a head on the last four CLS tokens, one frame, float32, initial weights. Each case runs in a
process of its own: first once for its memory, then in turn with plain forward passes for its time.
The dense form keeps whole attention matrices; at 360x640 it needs about 19 GiB and is left out.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from driving_xai.explain.attention_flow import GenericAttention, Rollout
from driving_xai.explain.smoothed_attention import SNNA
from driving_xai.targets import output
from tests.driving_xai.explain.transformers import TappedViT, dense, product, relevance_factors

SAMPLES = 3
CASES = ("rollout", "generic-attention", "snna", "snna-recompute", "snna-4-actions", "dense")
LARGEST_DENSE_TOKENS = 2000


def vit_small_8(height: int, width: int) -> TappedViT:
    """The paper's architecture. Initial weights: with sharper attention most of a row underflows, and
    arithmetic on such numbers is many times slower in the plain backward pass too."""
    model = TappedViT(
        taps=4, img_size=(height, width), patch_size=8, embed_dim=384, depth=12, num_heads=6
    ).float()
    torch.manual_seed(0)
    model.vit.init_weights()
    model.head.reset_parameters()
    return model


def dense_snna(model: TappedViT, frame: Tensor) -> Tensor:
    """SNNA as its equations are printed: every block's N x N matrices of the clean and the noisy frames."""
    inputs = model.normalised(frame)
    relevance = product(relevance_factors(dense(model, inputs, 0), "key"), "flow")
    spread = 0.15 * (inputs.max() - inputs.min())
    noisy = [inputs + spread * torch.randn_like(inputs) for _ in range(SAMPLES)]
    smoothed = torch.stack([dense(model, each, 0).gradient[-1][:, 0] for each in noisy]).mean(0)
    return relevance * smoothed.clamp(min=0).mean(0)


def case(name: str, model: TappedViT, frames: Tensor) -> Callable[[], Any]:
    if name == "dense":
        return lambda: dense_snna(model, frames[0])
    if name == "rollout":
        return lambda: Rollout(vit=model.vit)(model, frames, output(0))
    if name == "generic-attention":
        return lambda: GenericAttention(vit=model.vit)(model, frames, output(0))
    snna = SNNA(vit=model.vit, samples=SAMPLES, memory="recompute" if name == "snna-recompute" else "keep")
    actions = 4 if name == "snna-4-actions" else 1
    return lambda: snna.explain_each(model, frames, [output(action) for action in range(actions)])


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(name: str, size: tuple[int, int], repeats: int, threads: int) -> dict[str, float]:
    """Runs one case in this process, which must be new."""
    torch.set_num_threads(threads)
    model, frames = vit_small_8(*size), torch.rand(1, 3, *size)
    explain = case(name, model, frames)
    before = resident_mib()
    explain()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent: dict[str, list[tuple[float, float]]] = {"plain": [], "case": []}
    for _ in range(repeats):
        with torch.no_grad():
            spent["plain"].append(timed(lambda: model(frames)))
        spent["case"].append(timed(explain))
    wall = {key: statistics.median(each[0] for each in values) for key, values in spent.items()}
    processor = {key: statistics.median(each[1] for each in values) for key, values in spent.items()}
    return {
        "forward_s": wall["plain"],
        "seconds": wall["case"],
        "forwards": wall["case"] / wall["plain"],
        "processor_forwards": processor["case"] / processor["plain"],
        "extra_mib": peak - before,
    }


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock, and of processor time."""
    begun = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


def in_new_process(name: str, size: tuple[int, int], repeats: int, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--inside", "--case", name, "--size", f"{size[0]}x{size[1]}"]
    command += ["--repeats", str(repeats), "--threads", str(threads)]
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": root},
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def run(sizes: Sequence[tuple[int, int]], cases: Sequence[str], repeats: int, threads: int) -> dict[Any, Any]:
    """Measures and prints everything."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    print(
        f"{models[0] if models else platform.machine()}, {threads} threads, torch {torch.__version__}, "
        f"timm {timm.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    measured = {}
    for size in sizes:
        tokens = 1 + (size[0] // 8) * (size[1] // 8)
        print(f"\n{size[0]} x {size[1]}, {tokens} tokens, m = {SAMPLES}")
        for name in cases:
            if name == "dense" and tokens > LARGEST_DENSE_TOKENS:
                continue
            found = measured[size, name] = in_new_process(name, size, repeats, threads)
            print(
                f"  {name:18} {found['forwards']:6.2f} forwards of {found['forward_s']:.2f} s "
                f"({found['processor_forwards']:.2f} in processor time), {found['extra_mib']:6.0f} MiB more",
                flush=True,
            )
    return measured


@pytest.mark.bench
def test_snna_costs_a_few_forward_passes_and_little_memory() -> None:
    measured = run([(224, 224)], ["snna", "snna-recompute"], repeats=3, threads=2)
    assert measured[(224, 224), "snna"]["processor_forwards"] < 8
    assert measured[(224, 224), "snna-recompute"]["extra_mib"] < 300


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="224x224,256x448,360x640")
    parser.add_argument("--case", default=",".join(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    sizes = [tuple(int(side) for side in size.split("x")) for size in given.size.split(",")]
    cases = given.case.split(",")
    if given.inside:
        print(json.dumps(measure(cases[0], sizes[0], given.repeats, given.threads)))
    else:
        run(sizes, cases, given.repeats, given.threads)


if __name__ == "__main__":
    main()
