"""All GPU cases in one process and one table, with the card's own ceilings.

    python -m tests.benchmarks.bench_gpu [--only snna,kernel,...] [--device cuda]

Prints a Markdown table in under five minutes: SNNA with the fused kernels and in tiles, the kernel alone
over sizes of its blocks, deletion and insertion beside the network alone (and torch-cam where it is
installed), live scoring. Times are medians; launches are kernels and copies that the device ran in one call
(operators that would launch one on a CPU). A case that fails has its error in the table, and the process exits 1.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from driving_xai.explain.vit import fused, tiles
from driving_xai.explain.vit.capture import AttentionState
from tests.benchmarks import bench_deletion, bench_replay, bench_vit
from tests.driving_xai.replay.conftest import write_recording


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the cases are; the defaults are those of docs/benchmarks/vit.md and deletion.md."""

    device: str = "cuda"
    frame: tuple[int, int] = (360, 640)
    depth: int = 12
    samples: int = 5
    tokens: int = 3601
    network: str = "resnet50"
    side_px: int = 224
    curves: tuple[tuple[int, int], ...] = ((1, 20), (1, 224), (8, 20))
    """Images and steps."""
    batch_size: int = 256
    hidden_size: int = 1024
    live_s: float = 4.0
    matrix: int = 8192
    runs: int = 20
    seconds: float = 1.5
    """A case is repeated `runs` times or for so long, whichever is less."""


SMALL = Size(
    device="cpu",
    frame=(16, 24),
    depth=4,
    samples=2,
    tokens=7,
    network="resnet18",
    side_px=64,
    curves=((1, 3),),
    batch_size=2,
    hidden_size=8,
    live_s=0.3,
    matrix=64,
    runs=1,
    seconds=0.0,
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    case: str
    milliseconds: float | None = None
    extra_mib: float | None = None
    """Peak memory of the device beyond what was held before."""
    launches: int | None = None
    note: str = ""

    def __str__(self) -> str:
        shown = (
            self.case,
            _shown(self.milliseconds, ".2f"),
            _shown(self.extra_mib, ".0f"),
            _shown(self.launches, "d"),
            self.note,
        )
        return f"| {' | '.join(shown)} |"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def measured(
    name: str, work: Callable[[], Any], size: Size, *, note: Callable[[float], str] | str = ""
) -> Row:
    """Runs the work once to compile and load, then for its time, its memory and its launches.

    Args:
        note: of the seconds that one run took.
    """
    work()
    launches, extra = _launches(work, size.device), _extra_mib(work, size.device)
    spent: list[float] = []
    while not spent or (len(spent) < size.runs and sum(spent) < size.seconds):
        spent.append(bench_vit.timed(work, size.device)[0])
    middle = statistics.median(spent)
    said = note if isinstance(note, str) else note(middle)
    return Row(case=name, milliseconds=1e3 * middle, extra_mib=extra, launches=launches, note=said)


def _launches(work: Callable[[], Any], device: str) -> int:
    """Kernels and copies that ran on the device; on a CPU the operators that would launch one."""
    if device == "cpu":
        with Operators() as seen:
            work()
        return seen.count
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiled.events())


class Operators(TorchDispatchMode):
    """Counts operators that compute, and the bytes of what they are given and give."""

    count = 0
    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "new_empty", "detach", "_unsafe_view")):
            self.count += 1
            self.bytes += sum(
                each.nbytes for each in tree_leaves((args, kwargs, found)) if isinstance(each, Tensor)
            )
        return found


def _extra_mib(work: Callable[[], Any], device: str) -> float | None:
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


@contextmanager
def precision(name: str, device: str) -> Iterator[None]:
    """fp32, tf32, or bf16 by autocast; as before afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    lowered = torch.autocast(device, torch.bfloat16) if name == "bf16" else nullcontext()
    try:
        with lowered:
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@contextmanager
def way(name: fused.Way) -> Iterator[None]:
    """Chooses tiles or kernels for the attention; see `fused`."""
    before = os.environ.get(fused.VARIABLE)
    os.environ[fused.VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[fused.VARIABLE]
        else:
            os.environ[fused.VARIABLE] = before


def ceilings(size: Size) -> Iterator[Row]:
    """What the card does at best: a matrix product of each precision, and a copy."""
    side = size.matrix
    for name in ("bf16", "tf32", "fp32"):
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        one, other = torch.randn(2, side, side, device=size.device, dtype=dtype)
        with precision("tf32" if name == "tf32" else "fp32", size.device):
            yield measured(
                f"ceiling: {name} product of {side} x {side}",
                lambda one=one, other=other: one @ other,
                size,
                note=lambda seconds: f"{2 * side**3 / seconds / 1e12:.4g} TFLOP/s",
            )
    source = torch.empty(4 * side**2, device=size.device)
    target = torch.empty_like(source)
    moved = 2 * source.nbytes
    yield measured(
        "ceiling: copy",
        lambda: target.copy_(source),
        size,
        note=lambda seconds: f"{moved / seconds / 1e12:.4g} TB/s, read and written",
    )


def snna(size: Size) -> Iterator[Row]:
    """SNNA of a ViT-S/8 with kernels and in tiles, beside plain forward passes."""
    height, width = size.frame
    for name in ("bf16", "tf32", "fp32"):
        model = bench_vit.vit_small_8(height, width, size.depth).to(size.device)
        frame = torch.rand(1, 3, height, width, device=size.device)
        setting = bench_vit.Setting(
            size=size.frame, samples=size.samples, device=size.device, depth=size.depth
        )
        explain = bench_vit.case("snna", model, frame, setting)
        with precision(name, size.device), torch.no_grad():
            for count in (1, size.samples):
                yield measured(
                    f"forward of {count}, {name}", _call(model, frame.repeat(count, 1, 1, 1)), size
                )
            for choice in ("auto", "tiles"):
                with way(choice):
                    yield measured(f"SNNA m = {size.samples}, {name}, {choice}", explain, size)


def operators(size: Size) -> Iterator[Row]:
    """Operators of SNNA on a CPU with a GPU's options: what a GPU would be asked to launch.

    Two operators stand for the two kernels, which no CPU runs at this size: each reads one operand once.
    """
    height, width = size.frame
    model, frame = bench_vit.vit_small_8(height, width, size.depth), torch.rand(1, 3, height, width)
    setting = bench_vit.Setting(size=size.frame, samples=size.samples, device="cuda", depth=size.depth)
    explain = bench_vit.case("snna", model, frame, setting)

    def stand_in(state: AttentionState, weights: Tensor, *, rows: int | None) -> Tensor:
        assert state.gradient is not None
        state.query.amax(-1)
        return state.gradient.amax(-1)

    for name in ("tiles", "kernels"):
        with pytest.MonkeyPatch.context() as patch, Operators() as seen:
            if name == "kernels":
                patch.setattr(fused, "serves", lambda _state: True)
                patch.setattr(fused, "gradient_flow", stand_in)
            explain()
        note = f"{seen.bytes / 1e9:.2f} GB of operands and results"
        yield Row(case=f"SNNA m = {size.samples}, operators, {name}", launches=seen.count, note=note)


def kernel(size: Size) -> Iterator[Row]:
    """One block's gradient flow alone: the table to choose blocks by."""
    heads, width = 6, 64
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(4, 1, heads, size.tokens, width, generator=generator).to(size.device)
    state = AttentionState(parts[0] * width**-0.5, parts[1], parts[2], None, parts[3:])
    weights = torch.rand(1, 1, 1, size.tokens, generator=generator).to(size.device)
    # Scores twice, for the log-sum-exp and for the tile, and D Vᵀ.
    operations = 3 * 2 * heads * size.tokens**2 * width

    def note(seconds: float) -> str:
        return f"{operations / seconds / 1e12:.3g} TFLOP/s of products"

    with way("tiles"):
        yield measured(
            "gradient flow, tiles, fp32", lambda: tiles.gradient_flow(state, weights), size, note=note
        )
    if size.device != "cuda" or find_spec("triton") is None:
        return
    from driving_xai.explain.vit import kernels

    halved = AttentionState(*(each.bfloat16() for each in state[:3]), None, parts[3:].bfloat16())
    for name, given, how in (("tf32x3", state, "tf32x3"), ("tf32", state, "tf32"), ("bf16", halved, "tf32")):
        for queries, keys, warps, stages in (
            (64, 64, 4, 1),
            (64, 64, 4, 2),
            (128, 64, 8, 1),
            (128, 64, 8, 2),
            (128, 128, 8, 1),
        ):
            blocks = kernels.Blocks(queries=queries, keys=keys, warps=warps, stages=stages)
            title = (
                f"gradient flow, kernel, {name}, blocks {queries} x {keys}, {warps} warps, {stages} stages"
            )
            run = _flow(kernels.gradient_flow, given, weights, how, blocks)
            yield from guarded(
                title, lambda run=run, title=title: iter([measured(title, run, size, note=note)])
            )


def _flow(
    flow: Callable, state: AttentionState, weights: Tensor, how: str, blocks: Any
) -> Callable[[], Tensor]:
    return lambda: flow(state, weights, rows=weights.shape[-1], precision=how, blocks=blocks)


def deletion(size: Size) -> Iterator[Row]:
    """Both curves of a network's Grad-CAM, beside the network alone and torch-cam."""
    net = bench_deletion.Net(size.network).eval().to(size.device)
    for name in ("fp32", "tf32", "bf16"):
        frames = torch.rand(size.batch_size, 3, size.side_px, size.side_px, device=size.device)
        with precision(name, size.device):
            with torch.no_grad():
                alone = measured(f"network alone, {size.batch_size} images, {name}", _call(net, frames), size)
            yield alone
            assert alone.milliseconds is not None
            least = alone.milliseconds / size.batch_size
            for images, steps in size.curves:
                for who in ("ours", "torch-cam"):
                    if who not in bench_deletion.CASES:
                        continue
                    run, given = bench_deletion.CASES[who], frames[:images]
                    passes = 2 * images * (steps + 1)
                    yield measured(
                        f"deletion and insertion, {images} x {steps} steps, {name}, {who}",
                        lambda run=run, given=given, steps=steps: run(net, given, steps, size.batch_size),
                        size,
                        note=lambda seconds, passes=passes, least=least: (
                            f"{passes / seconds:.0f} passes/s, {passes * least / (10 * seconds):.0f} % of the network alone"
                        ),
                    )


def live(size: Size) -> Iterator[Row]:
    """Steering predicted, explained and scored frame by frame, as a live viewer has it."""
    with tempfile.TemporaryDirectory() as folder:
        drive = bench_replay.DRIVE
        if not drive.is_dir():
            drive = write_recording(Path(folder) / "drive")
        checkpoint = bench_replay.full_size(Path(folder) / "model", size.device, hidden_size=size.hidden_size)
        for title, every in (("no control", 10**6), ("control on every frame", 1)):
            config = bench_replay.ReplayConfig(control_every=every, end_s=size.live_s)
            for _warm_up in range(2):
                spent = bench_replay.scoring_ms(checkpoint, drive, config, 2)
            stages = ", ".join(f"{stage} {ms:.2f}" for stage, ms in spent.items() if stage != "whole")
            yield Row(
                case=f"live scoring, {title}",
                milliseconds=spent["whole"],
                note=f"{1e3 / spent['whole']:.0f} frames/s; {stages} ms",
            )


def _call(model: Callable[[Tensor], Tensor], frames: Tensor) -> Callable[[], Tensor]:
    return lambda: model(frames)


CASES: dict[str, Callable[[Size], Iterator[Row]]] = {
    "ceilings": ceilings,
    "operators": operators,
    "snna": snna,
    "kernel": kernel,
    "deletion": deletion,
    "live": live,
}


def guarded(name: str, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows; a last one with the error where a case fails: a lent card's minutes are not spent on one."""
    try:
        yield from rows()
    except Exception as error:
        traceback.print_exc()
        yield Row(case=name, note=f"FAILED: {type(error).__name__}: {str(error).splitlines()[0][:80]}")


def run(size: Size, only: Sequence[str] = tuple(CASES)) -> list[Row]:
    """Measures and prints everything."""
    card = torch.cuda.get_device_name() if size.device == "cuda" else platform.machine()
    begun, rows = time.perf_counter(), []
    print(f"{card}, torch {torch.__version__}, Python {platform.python_version()}\n")
    print("| case | ms | MiB more | launches | |\n|---|---|---|---|---|")
    for name in only:
        for row in guarded(name, lambda name=name: CASES[name](size)):
            rows.append(row)
            print(row, flush=True)
    print(f"\n{time.perf_counter() - begun:.0f} s for all")
    return rows


def test_every_case_runs_on_a_cpu(one_thread: None, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(SMALL)
    assert not [row for row in rows if row.note.startswith("FAILED")]
    found = {row.case: row for row in rows}
    for case in (
        "ceiling: copy",
        "SNNA m = 2, bf16, tiles",
        "gradient flow, tiles, fp32",
        "live scoring, no control",
    ):
        assert found[case].milliseconds > 0, case
    forward, explained = found["forward of 1, fp32"].launches, found["SNNA m = 2, fp32, tiles"].launches
    assert explained > 2 * forward > 0
    in_tiles, in_kernels = (found[f"SNNA m = 2, operators, {name}"].launches for name in ("tiles", "kernels"))
    assert in_kernels < in_tiles
    printed = capsys.readouterr().out
    assert all(str(row) in printed for row in rows)


def test_a_case_that_fails_is_a_row_and_not_the_end(monkeypatch, capsys) -> None:
    def fails(_size: Size) -> Iterator[Row]:
        yield Row(case="half")
        raise MemoryError("out of it")

    monkeypatch.setitem(CASES, "snna", fails)
    monkeypatch.setitem(CASES, "live", lambda _size: iter([Row(case="later", milliseconds=1.0)]))
    notes = [row.note for row in run(SMALL, ["snna", "live"])]
    assert notes == ["", "FAILED: MemoryError: out of it", ""]
    assert "| later | 1.00 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        main(["--device", "cpu", "--small", "--only", "snna"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(CASES), help="Cases, separated by commas.")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--small", action="store_true", help="Sizes that take seconds on a CPU.")
    given = parser.parse_args(arguments)
    only = given.only.split(",")
    if unknown := set(only) - CASES.keys():
        parser.error(f"got case {sorted(unknown)[0]!r}; expected some of: {', '.join(CASES)}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --device cpu --small runs every case at a small size")
    size = SMALL if given.small else Size(device=given.device)
    if any(row.note.startswith("FAILED") for row in run(size, only)):
        sys.exit(1)


if __name__ == "__main__":
    main()
