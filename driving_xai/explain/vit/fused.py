"""Which way the attention passes are computed: the fused Triton kernels where they can, else tiles.

`DRIVING_XAI_ATTENTION` chooses: `auto` (the default), `tiles`, or `fused`, which fails where the kernels
cannot serve rather than fall back. Maps differ by rounding only.
"""

from __future__ import annotations

import functools
import os
import subprocess
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from driving_xai.errors import OptionError
from driving_xai.explain.vit.capture import AttentionState

if TYPE_CHECKING:
    from driving_xai.explain.vit.kernels import Precision

VARIABLE = "DRIVING_XAI_ATTENTION"
Way = Literal["auto", "tiles", "fused"]

MAX_HEAD_SIZE = 128
"""Wider heads do not fit a program's shared memory."""
_AGREEMENT = 0.01
"""Of the largest value: what rounding to ten bits cannot exceed in the trial, and a wrong kernel does."""


def serves(state: AttentionState) -> bool:
    """Whether the fused kernels take this state; the one place where the way is chosen.

    On `auto` they take CUDA tensors of 32 or 16 bits, after they have agreed once, on the same device and
    with heads of the same size, with the equation written out; where they did not, one warning says so.

    Raises:
        OptionError: `DRIVING_XAI_ATTENTION` has no such value, or is `fused` where they cannot serve.
    """
    way = os.environ.get(VARIABLE, "auto")
    if way not in get_args(Way):
        raise OptionError(f"got {VARIABLE}={way}; expected one of: {', '.join(get_args(Way))}")
    if way == "tiles" or (way == "auto" and not state.key.is_cuda):
        return False
    obstacle = _obstacle(state)
    if obstacle and way == "fused":
        raise OptionError(
            f"got {VARIABLE}=fused, but {obstacle}; unset it, and the attention is followed in tiles"
        )
    return not obstacle


def attention_flow(
    state: AttentionState, weights: Float[Tensor, "B N"], *, rows: int | None
) -> Float[Tensor, "B h N"]:
    """As `tiles.attention_flow`, in float32."""
    from driving_xai.explain.vit import kernels

    return kernels.attention_flow(state, weights, rows=_rows(state, rows), precision=precision_of(state))


def gradient_flow(
    state: AttentionState, weights: Float[Tensor, "C B #h N"], *, rows: int | None
) -> Float[Tensor, "C B h N"]:
    """As `tiles.gradient_flow`, in float32."""
    from driving_xai.explain.vit import kernels

    return kernels.gradient_flow(state, weights, rows=_rows(state, rows), precision=precision_of(state))


def precision_of(state: AttentionState) -> Precision:
    """How products are rounded: to ten bits where the caller allows it, else about as float32.

    Under autocast the model's own queries, keys, values and gradients have eight bits, of which ten lose
    nothing. Exact float32 products (`ieee`) would run outside the tensor cores and spill registers.
    """
    if not state.key.is_cuda:
        return "ieee" if state.key.dtype == torch.float32 else "widened"
    lowered = torch.is_autocast_enabled("cuda") or torch.get_float32_matmul_precision() != "highest"
    return "tf32" if lowered or state.key.dtype != torch.float32 else "tf32x3"


def _rows(state: AttentionState, rows: int | None) -> int:
    return state.key.shape[2] if rows is None else rows


def _obstacle(state: AttentionState) -> str | None:
    """Why the kernels cannot serve, if they cannot."""
    key = state.key
    if find_spec("triton") is None:
        return "Triton is not installed"
    if key.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the attention is in {str(key.dtype).removeprefix('torch.')}"
    if key.shape[-1] > MAX_HEAD_SIZE:
        return f"a head has {key.shape[-1]} numbers, more than {MAX_HEAD_SIZE}"
    if key.is_cuda and torch.cuda.get_device_capability(key.device) < (8, 0):
        return f"{torch.cuda.get_device_name(key.device)} has no tensor cores for float32"
    if not key.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on the {key.device.type}"
    return _trial(key.device, key.dtype, key.shape[-1], precision_of(state))


@functools.cache
def _trial(device: torch.device, dtype: torch.dtype, size: int, precision: Precision) -> str | None:
    """Runs the kernels once on something small; None where they find what the equation says.

    A compiler that is missing or has no use for the device shows here, not in the middle of a run.
    """
    try:
        problem = _disagreement(device, dtype, size, precision)
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        problem = f"Triton does not work on {device} ({type(error).__name__}: {error})"
    except Exception as error:
        # Triton is imported only here, and its errors share no base with Python's.
        if not type(error).__module__.startswith("triton"):
            raise
        problem = f"Triton cannot build the kernels for {device} ({error})"
    if problem:
        warnings.warn(f"{problem}; the attention is followed in tiles, slower", RuntimeWarning, stacklevel=2)
    return problem


def _disagreement(device: torch.device, dtype: torch.dtype, size: int, precision: Precision) -> str | None:
    from driving_xai.explain.vit import kernels

    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(4, 1, 1, 67, size, generator=generator).to(device, dtype)
    state = AttentionState(parts[0] * size**-0.5, parts[1], parts[2], None, parts[3:])
    weights = torch.rand(1, 1, 1, 67, generator=generator).to(device)
    query, key, value, gradient = (each.double() for each in (*state[:3], parts[3]))
    attention = (query @ key.mT).softmax(-1)
    passed = weights[0, ..., None].double() * attention
    expected = (passed * (gradient @ value.mT)).clamp_min(0).sum(2), passed.sum(2)
    found = (
        kernels.gradient_flow(state, weights, rows=67, precision=precision)[0],
        kernels.attention_flow(state, weights[0, :, 0], rows=67, precision=precision),
    )
    for ours, exact in zip(found, expected, strict=True):
        error = float((ours - exact).abs().max() / exact.max())
        if not error < _AGREEMENT:
            return f"the fused kernels are off by {error:.1g} of their largest value on {device}"
    return None
