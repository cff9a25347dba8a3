"""The fused kernels under Triton's interpreter and through its compiler, and the way back to tiles."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from driving_xai.errors import OptionError
from driving_xai.explain.vit import fused, tiles
from driving_xai.explain.vit.capture import AttentionState

ROOT = Path(__file__).parents[4]
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs Triton, which torch brings on Linux"
)


def _run_cases(environment: dict[str, str]) -> None:
    cases = Path(__file__).with_name("kernel_cases.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", str(cases)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b\d\d passed", done.stdout), done.stdout
    assert "skipped" not in done.stdout


@needs_triton
def test_the_kernels_find_what_the_equations_say_under_the_interpreter():
    _run_cases({"TRITON_INTERPRET": "1"})


@needs_triton
@pytest.mark.gpu
def test_the_kernels_find_what_the_equations_say_on_a_gpu():
    _run_cases({"TRITON_INTERPRET": "0"})


def _state(**changes) -> AttentionState:
    parts = torch.rand(4, 1, 2, 9, 8, generator=torch.Generator().manual_seed(0), **changes)
    return AttentionState(parts[0], parts[1], parts[2], None, parts[3:])


def test_on_a_cpu_the_way_is_tiles_unless_it_is_asked_for_by_name(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for way in ("auto", "tiles"):
        monkeypatch.setenv(fused.VARIABLE, way)
        assert not fused.serves(_state())
    monkeypatch.delenv(fused.VARIABLE)
    assert not fused.serves(_state())
    monkeypatch.setenv(fused.VARIABLE, "fused")
    with pytest.raises(OptionError, match=r"got DRIVING_XAI_ATTENTION=fused, but .*; unset it"):
        tiles.gradient_flow(_state(), torch.ones(1, 1, 1, 9))
    monkeypatch.setenv(fused.VARIABLE, "off")
    with pytest.raises(
        OptionError, match=r"got DRIVING_XAI_ATTENTION=off; expected one of: auto, tiles, fused"
    ):
        tiles.attention_flow(_state(), torch.ones(1, 9))


class _OnCuda:
    """A tensor's face, as far as the choice looks at it."""

    is_cuda, dtype, shape, device = True, torch.float32, (1, 2, 9, 8), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "triton", "reason"),
    [
        ((9, 0), None, "Triton is not installed"),
        ((7, 5), "found", "Turing has no tensor cores for float32"),
        ((9, 0), "found", "Triton does not work on cuda:0 (RuntimeError: Failed to find C compiler)"),
    ],
)
def test_a_gpu_that_cannot_run_the_kernels_goes_on_in_tiles(monkeypatch, capability, triton, reason):
    def fails(*_arguments):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.delenv(fused.VARIABLE, raising=False)
    monkeypatch.setattr(fused, "find_spec", lambda _name: triton)
    monkeypatch.setattr(fused, "_disagreement", fails)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Turing")
    state = _state()._replace(key=_OnCuda())
    fused._trial.cache_clear()
    if "compiler" in reason:
        with pytest.warns(RuntimeWarning, match="Failed to find C compiler.*followed in tiles, slower"):
            assert not fused.serves(state)
    assert not fused.serves(state), "and the warning is not repeated"
    assert fused._obstacle(state) == reason
    fused._trial.cache_clear()


def test_an_error_that_is_not_triton_s_is_not_taken_for_a_reason(monkeypatch):
    def fails(*_arguments):
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(fused, "_disagreement", fails)
    fused._trial.cache_clear()
    with pytest.raises(KeyError):
        fused._trial(torch.device("cpu"), torch.float32, 8, "ieee")


def test_products_lose_digits_only_where_the_caller_lets_them():
    on_cuda, on_cpu = _state()._replace(key=_OnCuda()), _state()
    assert fused.precision_of(on_cpu) == "ieee"
    assert fused.precision_of(_state(dtype=torch.bfloat16)) == "widened"
    assert fused.precision_of(on_cuda) == "tf32x3"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert fused.precision_of(on_cuda) == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


def test_tiles_launch_for_every_tile_and_the_kernel_once(monkeypatch):
    """Why a GPU waits for tiles: at 3,601 tokens 512 rows make eight, with seven launches each."""
    state, weights = _state(), torch.ones(1, 1, 1, 9)

    def launched() -> int:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            tiles.gradient_flow(state, weights, tile_rows=1)
        views = ("slice", "select", "as_strided", "view", "expand", "transpose", "unsqueeze", "reshape")
        own = [each.key.removeprefix("aten::") for each in seen.key_averages() for _ in range(each.count)]
        return sum(name not in views for name in own)

    in_tiles = launched()
    monkeypatch.setattr(fused, "serves", lambda _state: True)
    monkeypatch.setattr(fused, "gradient_flow", lambda state, weights, rows: torch.zeros(1, 1, 2, 9))
    assert in_tiles > 9 * 6
    assert launched() < 5


_COMPILED = """
import re, subprocess, sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from driving_xai.explain.vit import kernels

def build(kernel, operand, precision, targets, size, capability):
    blocks = kernels.blocks_for(precision, targets=targets, size=size)
    how = kernels.launch_options(precision, blocks, size)
    constant = {name: value for name, value in how.items() if name.isupper()}
    if kernel is kernels.gradient_flow_kernel:
        constant |= {"TARGETS": targets, "COLUMNS": targets}
    types = {"query": operand, "key": operand, "value": operand, "gradient": operand}
    types |= {name: "*fp32" for name in ("sums", "weights", "found")}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constant else types.get(name, "i32") for name in names}
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names)
               if name in types or name.split("_")[0] in types and name not in constant}
    options = {name: value for name, value in how.items() if not name.isupper()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constant, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
for case in (
    (kernels.attention_flow_kernel, "*fp32", "tf32", 1, 64, 90),
    (kernels.gradient_flow_kernel, "*fp32", "tf32", 1, 64, 90),
    (kernels.gradient_flow_kernel, "*fp32", "tf32x3", 1, 64, 90),
    (kernels.gradient_flow_kernel, "*bf16", "tf32", 4, 64, 90),
    (kernels.gradient_flow_kernel, "*fp32", "tf32x3", 1, 64, 86),
):
    built = build(*case)
    cubin = Path(sys.argv[1]) / "kernel.cubin"
    cubin.write_bytes(built.asm["cubin"])
    used = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True).stdout
    registers, stack = re.search(r"REG:(\\d+) STACK:(\\d+)", used).groups()
    products = len(re.findall(r"wgmma[.]mma_async|mma[.]sync", built.asm["ptx"]))
    print("built", case[0].__name__, *case[1:], registers, stack, built.metadata.shared, products)
"""


@needs_triton
def test_the_kernels_compile_for_gpus_that_are_not_there(tmp_path):
    """Into tensor core instructions, within the registers and the shared memory of a program."""
    done = subprocess.run(
        [sys.executable, "-c", _COMPILED, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    built = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("built")]
    assert len(built) == 5
    for *case, _registers, stack, shared, products in built:
        assert int(products) > 0, case
        assert int(shared) <= 100 * 1024, case
        if case[-1] == "90":
            assert int(stack) == 0, case
