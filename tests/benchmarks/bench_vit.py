"""What SNNA costs: time in plain forward passes of the same run, operations, and memory beyond the model.

    python -m tests.benchmarks.bench_vit [--size 360x640] [--case snna,...] [--repeats 3] [--threads 2]
        [--device cuda] [--precision fp32|tf32|bf16] [--samples 3] [--peak TERA]

ViT-S/8 with a head on the last four CLS tokens, one frame, initial weights. Each case runs in a process of
its own: first once for its memory, then in turn with plain forward passes for its time. On a GPU, whose
first call also compiles and loads, time is the median of the later ones, and the GPU draws its own noise.
--peak is what the device could do at best at this precision, in tera-operations a second, by its data sheet.
The dense form keeps whole attention matrices: at 360x640 more than 10 GiB; larger frames are left out.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from driving_xai.explain.vit.flow import GenericAttention, Rollout
from driving_xai.explain.vit.smoothing import SNNA
from driving_xai.explain.vit.tiles import GPU_TILE_ROWS, TILE_ROWS
from driving_xai.targets import output
from tests.driving_xai.explain.transformers import TappedViT, dense, product, relevance_factors

CASES = ("rollout", "generic-attention", "snna", "snna-recompute", "snna-4-actions", "dense")
LARGEST_DENSE_TOKENS = 4000


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every case of a run has in common."""

    size: tuple[int, int]
    samples: int = 3
    device: str = "cpu"
    precision: str = "fp32"
    """fp32; tf32: its products of ten bits; bf16: the model under autocast, relevance in fp32."""
    threads: int = 2
    repeats: int = 3
    depth: int = 12
    """Blocks; the paper's model has twelve."""


def vit_small_8(height: int, width: int, depth: int = 12) -> TappedViT:
    """The paper's architecture. Initial weights: with sharper attention most of a row underflows, and
    arithmetic on such numbers is many times slower in the plain backward pass too."""
    model = TappedViT(
        taps=4, img_size=(height, width), patch_size=8, embed_dim=384, depth=depth, num_heads=6
    ).float()
    torch.manual_seed(0)
    model.vit.init_weights()
    model.head.reset_parameters()
    return model


def dense_snna(model: TappedViT, frame: Tensor, samples: int) -> Tensor:
    """SNNA as its equations are printed: every block's N x N matrices of the clean and the noisy frames."""
    inputs = model.normalised(frame)
    relevance = product(relevance_factors(dense(model, inputs, 0), "key"), "flow")
    spread = 0.15 * (inputs.max() - inputs.min())
    noisy = [inputs + spread * torch.randn_like(inputs) for _ in range(samples)]
    smoothed = torch.stack([dense(model, each, 0).gradient[-1][:, 0] for each in noisy]).mean(0)
    return relevance * smoothed.clamp(min=0).mean(0)


def case(name: str, model: TappedViT, frames: Tensor, setting: Setting) -> Callable[[], Any]:
    if name == "dense":
        return lambda: dense_snna(model, frames[0], setting.samples)
    if name == "rollout":
        return lambda: Rollout()(model, frames, output(0))
    if name == "generic-attention":
        return lambda: GenericAttention()(model, frames, output(0))
    on_gpu = setting.device == "cuda"
    snna = SNNA(
        samples=setting.samples,
        memory="recompute" if name == "snna-recompute" else "keep",
        noise_on="frames" if on_gpu else "cpu",
        batch_size=setting.samples if on_gpu else 1,
        tile_rows=GPU_TILE_ROWS if on_gpu else TILE_ROWS,
    )
    actions = 4 if name == "snna-4-actions" else 1
    return lambda: snna.explain_each(model, frames, [output(action) for action in range(actions)])


class _Operations(TorchDispatchMode):
    """Counts the multiplications and additions of matrix products, by torch's own formulas.

    Its FlopCounterMode also follows modules, which needs hooks that `torch.autograd.grad` does not call.
    """

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.count += formula(*args, **(kwargs or {}), out_val=found)
        return found


def held_mib(setting: Setting, *, peak: bool) -> float:
    """Memory of the device, or of this process."""
    if setting.device == "cuda":
        bytes_held = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        return bytes_held / 2**20
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(name: str, setting: Setting) -> dict[str, float]:
    """Runs one case in this process, which must be new."""
    torch.set_num_threads(setting.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = setting.precision == "tf32"
    model = vit_small_8(*setting.size, setting.depth).to(setting.device)
    frames = torch.rand(1, 3, *setting.size, device=setting.device)
    explain = case(name, model, frames, setting)
    with torch.autocast(setting.device, torch.bfloat16, enabled=setting.precision == "bf16"):
        before = held_mib(setting, peak=False)
        explain()
        extra = held_mib(setting, peak=True) - before
        with _Operations() as of_case:
            explain()
        with _Operations() as of_plain, torch.no_grad():
            model(frames)
        spent: dict[str, list[tuple[float, float]]] = {"plain": [], "case": []}
        for _ in range(setting.repeats):
            with torch.no_grad():
                spent["plain"].append(timed(lambda: model(frames), setting.device))
            spent["case"].append(timed(explain, setting.device))
    wall = {key: statistics.median(each[0] for each in values) for key, values in spent.items()}
    processor = {key: statistics.median(each[1] for each in values) for key, values in spent.items()}
    return {
        "forward_s": wall["plain"],
        "seconds": wall["case"],
        "forwards": wall["case"] / wall["plain"],
        "processor_forwards": processor["case"] / processor["plain"],
        "tera_operations": of_case.count / 1e12,
        "operations_forwards": of_case.count / of_plain.count,
        "extra_mib": extra,
    }


def timed(work: Callable[[], Any], device: str = "cpu") -> tuple[float, float]:
    """Seconds on the clock, and of processor time."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    begun = time.perf_counter(), time.process_time()
    work()
    wait()
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


def in_new_process(name: str, setting: Setting) -> dict[str, float]:
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, __file__, "--inside", json.dumps(asdict(setting)), "--case", name],
        env={**os.environ, "PYTHONPATH": root},
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def rate(found: Mapping[str, float], peak: float | None) -> str:
    """Operations as a number, by the second, and as a share of the device's peak where that is known."""
    tera = found["tera_operations"]
    by_second = tera / found["seconds"]
    share = "" if peak is None else f" ({100 * by_second / peak:.1f} % of {peak:g})"
    return f"{tera:.2f} tera-operations, {by_second:.3g} a second{share}"


def run(settings: Sequence[Setting], cases: Sequence[str], *, peak: float | None = None) -> dict[Any, Any]:
    """Measures and prints everything."""
    first = settings[0]
    print(
        f"{_hardware(first.device)}, {first.threads} threads, {first.precision}, torch {torch.__version__}, "
        f"timm {timm.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    measured = {}
    for setting in settings:
        height, width = setting.size
        tokens = 1 + (height // 8) * (width // 8)
        print(f"\n{height} x {width}, {tokens} tokens, m = {setting.samples}")
        for name in cases:
            if name == "dense" and tokens > LARGEST_DENSE_TOKENS:
                continue
            found = measured[setting.size, name] = in_new_process(name, setting)
            print(
                f"  {name:18} {1e3 * found['seconds']:7.0f} ms, {found['forwards']:6.2f} forwards of "
                f"{1e3 * found['forward_s']:.0f} ms ({found['processor_forwards']:.2f} in processor time, "
                f"{found['operations_forwards']:.2f} in operations), {rate(found, peak)}, "
                f"{found['extra_mib']:6.0f} MiB more",
                flush=True,
            )
    return measured


def _hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()


def test_every_case_runs_on_a_small_frame(one_thread: None) -> None:
    setting = Setting(size=(16, 24), samples=2, threads=1, repeats=1, depth=4)
    for name in CASES:
        found = measure(name, setting)
        assert found["forwards"] > 0, name
        assert found["operations_forwards"] > 1, f"{name} runs the model at least once"


@pytest.mark.slow
def test_a_case_runs_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    setting = Setting(size=(16, 24), samples=1, threads=1, repeats=1, depth=4)
    found = run([setting], ["snna"], peak=1.0)[(16, 24), "snna"]
    assert found["operations_forwards"] > 1
    assert "16 x 24, 7 tokens, m = 1" in capsys.readouterr().out


@pytest.mark.bench
def test_snna_costs_a_few_forward_passes_and_little_memory() -> None:
    measured = run([Setting(size=(224, 224))], ["snna", "snna-recompute"])
    assert measured[(224, 224), "snna"]["processor_forwards"] < 8
    assert measured[(224, 224), "snna-recompute"]["extra_mib"] < 300


def _over_zero(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number over 0")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="224x224,256x448,360x640")
    parser.add_argument("--case", default=",".join(CASES))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16"))
    for name, default in (("samples", 3), ("repeats", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peak", type=_over_zero, metavar="TERA", help="Tera-operations a second, at best.")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    sizes, cases, inside = given.pop("size"), given.pop("case").split(","), given.pop("inside")
    peak = given.pop("peak")
    if inside:
        print(json.dumps(measure(cases[0], Setting(**json.loads(inside)))))
        return
    shapes = [tuple(int(side) for side in size.split("x")) for size in sizes.split(",")]
    run([Setting(size=(height, width), **given) for height, width in shapes], cases, peak=peak)


if __name__ == "__main__":
    main()
