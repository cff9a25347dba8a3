"""Triton kernels of the attention passes: N x N scores exist a tile at a time, in registers.

A program holds one block of keys of one head and walks over the blocks of queries; each tile of attention
is exp(q k − LSE) of scores computed again, LSE the row's log-sum-exp from a first pass. Products are
accumulated and everything else is computed in float32. No atomics: the same input gives the same bits.

Only `fused` imports this module, as it needs Triton.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from driving_xai.explain.vit.capture import AttentionState

Precision = Literal["ieee", "tf32", "tf32x3", "widened"]
"""How float32 operands are multiplied: exactly, with ten bits, or as three products of ten bits (about
float32). Operands of 16 bits are multiplied as they are, or `widened` to float32 first, with equal results:
Triton's interpreter knows no bfloat16."""

MAX_TARGETS = 4
"""Targets that share a pass; more go in several. A program of eight has no registers left."""
_LOG2_E = tl.constexpr(1.4426950408889634)


class Blocks(NamedTuple):
    """How much of the work a program takes; changes results by rounding only.

    The defaults fit the registers of a Hopper GPU, by the compiler's own report; they have not been timed.
    """

    queries: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 2
    """Blocks of queries on their way from memory at once."""


def blocks_for(precision: Precision, *, targets: int, size: int) -> Blocks:
    """Blocks whose operands stay in the registers and in 100 KiB of shared memory, for heads of 64 at least."""
    wide = size > 64
    if precision == "tf32x3":
        return Blocks(queries=64 if wide else 128, warps=8, stages=1)
    return Blocks(stages=1 if wide or targets > 1 else 2)


def log_sum_exp(
    state: AttentionState, *, rows: int, precision: Precision, blocks: Blocks
) -> Float[Tensor, "B h r"]:
    """log2 Σ_j exp(q_i k_j) of the first rows: base 2 because the hardware's exponential is."""
    query, key = _rows_in_memory(state.query), _rows_in_memory(state.key)
    count, heads, tokens, size = key.shape
    found = torch.empty(count, heads, rows, dtype=torch.float32, device=key.device)
    with torch.cuda.device_of(key):
        log_sum_exp_kernel[triton.cdiv(rows, blocks.queries), count * heads](
            query, key, found, heads, rows, tokens, *query.stride()[:3], *key.stride()[:3],
            **launch_options(precision, blocks, size),
        )  # fmt: skip
    return found


def attention_flow(
    state: AttentionState,
    weights: Float[Tensor, "B N"],
    *,
    rows: int,
    precision: Precision,
    blocks: Blocks | None = None,
) -> Float[Tensor, "B h N"]:
    """Σ_i w_i A_ij over the first rows; see `tiles.attention_flow`."""
    count, heads, tokens, size = state.key.shape
    blocks = blocks or blocks_for(precision, targets=1, size=size)
    query, key = _rows_in_memory(state.query), _rows_in_memory(state.key)
    sums = log_sum_exp(state, rows=rows, precision=precision, blocks=blocks)
    weights = weights.float()
    found = torch.empty(count, heads, tokens, dtype=torch.float32, device=key.device)
    with torch.cuda.device_of(key):
        attention_flow_kernel[triton.cdiv(tokens, blocks.keys), count * heads](
            query, key, sums, weights, found, heads, rows, tokens,
            *query.stride()[:3], *key.stride()[:3], *weights.stride(),
            **launch_options(precision, blocks, size),
        )  # fmt: skip
    return found


def gradient_flow(
    state: AttentionState,
    weights: Float[Tensor, "C B #h N"],
    *,
    rows: int,
    precision: Precision,
    blocks: Blocks | None = None,
) -> Float[Tensor, "C B h N"]:
    """Σ_i w_i (A_ij ∇A_ij)⁺ over the first rows, ∇A = D Vᵀ; see `tiles.gradient_flow`."""
    assert state.gradient is not None
    count, heads, tokens, size = state.key.shape
    blocks = blocks or blocks_for(precision, targets=min(len(state.gradient), MAX_TARGETS), size=size)
    query, key, value = map(_rows_in_memory, (state.query, state.key, state.value))
    gradient = _rows_in_memory(state.gradient)
    sums = log_sum_exp(state, rows=rows, precision=precision, blocks=blocks)
    weights = weights.float().expand(gradient.shape[:-1])
    found = torch.empty(gradient.shape[:-1], dtype=torch.float32, device=key.device)
    with torch.cuda.device_of(key):
        for first in range(0, len(gradient), MAX_TARGETS):
            some = slice(first, first + MAX_TARGETS)
            targets = len(gradient[some])
            gradient_flow_kernel[triton.cdiv(tokens, blocks.keys), count * heads](
                query, key, value, gradient[some], sums, weights[some], found[some], heads, rows, tokens,
                *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
                *gradient.stride()[:4], *weights.stride(), found.stride(0),
                TARGETS=targets, COLUMNS=triton.next_power_of_2(targets),
                **launch_options(precision, blocks, size),
            )  # fmt: skip
    return found


def launch_options(precision: Precision, blocks: Blocks, size: int) -> dict[str, Any]:
    """What all kernels are compiled for. A head's vectors are padded: a product takes a power of two, 16 at
    least."""
    return {
        "SIZE": size,
        "WIDTH": max(16, triton.next_power_of_2(size)),
        "PRECISION": precision,
        "QUERIES": blocks.queries,
        "KEYS": blocks.keys,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
        # Triton 3.9 warns where this is left to its default, which is about to change.
        "enable_fp_fusion": True,
    }


def _rows_in_memory(of_heads: Float[Tensor, "*batch N d"]) -> Float[Tensor, "*batch N d"]:
    """A view is taken as it is as long as each vector's numbers lie next to each other."""
    return of_heads if of_heads.stride(-1) == 1 else of_heads.contiguous()


# Triton compiles the functions below from their source: a type checker's wrapper must stay away from them.


@triton.jit
@no_type_check
def _vectors(start, at, end, stride, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """A block of vectors, zeros where there are none: [block, WIDTH]."""
    column = tl.arange(0, WIDTH)
    inside = (at < end)[:, None] & (column < SIZE)[None, :]
    return tl.load(start + at[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
@no_type_check
def _products(left, right, PRECISION: tl.constexpr):
    """left rightᵀ, accumulated in float32."""
    if PRECISION == "widened":
        return tl.dot(left.to(tl.float32), tl.trans(right).to(tl.float32), input_precision="ieee")
    return tl.dot(left, tl.trans(right), input_precision=PRECISION)


@triton.jit
@no_type_check
def _attention(query, key, sums, PRECISION: tl.constexpr):
    """A tile of A from its scores and its rows' log-sum-exp."""
    return tl.exp2(_products(query, key, PRECISION) * _LOG2_E - sums[:, None])


@triton.jit
@no_type_check
def log_sum_exp_kernel(
    query, key, found, heads, rows, tokens,
    query_frame, query_head, query_row, key_frame, key_head, key_row,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    frame, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    query += frame * query_frame + head * query_head
    key += frame * key_frame + head * key_head
    own = _vectors(query, row, rows, query_row, SIZE, WIDTH)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for start in range(0, tokens, KEYS):
        at = start + tl.arange(0, KEYS)
        scores = _products(own, _vectors(key, at, tokens, key_row, SIZE, WIDTH), PRECISION) * _LOG2_E
        scores = tl.where((at < tokens)[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, 1))
        total = total * tl.exp2(largest - larger) + tl.sum(tl.exp2(scores - larger[:, None]), 1)
        largest = larger
    into = found + tl.program_id(1).to(tl.int64) * rows + row
    tl.store(into, largest + tl.log2(total), mask=row < rows)


@triton.jit
@no_type_check
def attention_flow_kernel(
    query, key, sums, weights, found, heads, rows, tokens,
    query_frame, query_head, query_row, key_frame, key_head, key_row, weight_frame, weight_row,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(1).to(tl.int64)
    frame, head = which // heads, which % heads
    at = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    query += frame * query_frame + head * query_head
    own = _vectors(key + frame * key_frame + head * key_head, at, tokens, key_row, SIZE, WIDTH)
    flow = tl.zeros([KEYS], tl.float32)
    for start in range(0, rows, QUERIES):
        row = start + tl.arange(0, QUERIES)
        row_sums = tl.load(sums + which * rows + row, mask=row < rows, other=0.0)
        tile = _attention(_vectors(query, row, rows, query_row, SIZE, WIDTH), own, row_sums, PRECISION)
        weight = tl.load(weights + frame * weight_frame + row * weight_row, mask=row < rows, other=0.0)
        flow += tl.sum(tile * weight[:, None], 0)
    tl.store(found + which * tokens + at, flow, mask=at < tokens)


@triton.jit
@no_type_check
def gradient_flow_kernel(
    query, key, value, gradient, sums, weights, found, heads, rows, tokens,
    query_frame, query_head, query_row, key_frame, key_head, key_row, value_frame, value_head, value_row,
    gradient_target, gradient_frame, gradient_head, gradient_row,
    weight_target, weight_frame, weight_head, weight_row, found_target,
    TARGETS: tl.constexpr, COLUMNS: tl.constexpr,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(1).to(tl.int64)
    frame, head = which // heads, which % heads
    at = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    query += frame * query_frame + head * query_head
    gradient += frame * gradient_frame + head * gradient_head
    weights += frame * weight_frame + head * weight_head
    own_key = _vectors(key + frame * key_frame + head * key_head, at, tokens, key_row, SIZE, WIDTH)
    own_value = _vectors(value + frame * value_frame + head * value_head, at, tokens, value_row, SIZE, WIDTH)
    # A column for each target: the tile of A is shared by all of them.
    column = tl.arange(0, COLUMNS)
    flow = tl.zeros([KEYS, COLUMNS], tl.float32)
    for start in range(0, rows, QUERIES):
        row = start + tl.arange(0, QUERIES)
        row_sums = tl.load(sums + which * rows + row, mask=row < rows, other=0.0)
        tile = _attention(_vectors(query, row, rows, query_row, SIZE, WIDTH), own_key, row_sums, PRECISION)
        for target in tl.static_range(TARGETS):
            far = tl.full([], target, tl.int64)
            of_target, weighing = gradient + far * gradient_target, weights + far * weight_target
            arriving = _vectors(of_target, row, rows, gradient_row, SIZE, WIDTH)
            weight = tl.load(weighing + row * weight_row, mask=row < rows, other=0.0)
            gained = tile * _products(arriving, own_value, PRECISION)
            # Not a number stays one: broken weights must not end as a map of zeros.
            gained = tl.maximum(gained, 0.0, propagate_nan=tl.PropagateNan.ALL)
            summed = tl.sum(gained * weight[:, None], 0)
            flow += tl.where(column[None, :] == target, summed[:, None], 0.0)
    into = found + column[None, :].to(tl.int64) * found_target + which * tokens + at[:, None]
    tl.store(into, flow, mask=(at < tokens)[:, None] & (column < TARGETS)[None, :])
