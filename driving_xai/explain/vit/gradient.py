"""Gradients of several targets through a Vision Transformer, block by block from the last one down.

A block's memory is given back before the block below it is touched, and all targets share the forward
pass and what is read of the attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.vit.capture import (
    AttentionState,
    BlockTrace,
    Forward,
    Graphs,
    Normalised,
    TokenGrid,
    attention_traced,
    check_vit,
    input_changed,
    run,
    weights_frozen,
)
from driving_xai.explain.vit.tiles import gradient_of_cls
from driving_xai.types import FrameModel, Frames, Scores, Target

Memory = Literal["keep", "recompute"]
"""A block's activations are kept for the backward pass, or computed again (gradient checkpointing)."""


class ClsPass(NamedTuple):
    """A forward pass, and what its backward pass will find."""

    grid: TokenGrid
    scores: Scores
    states: Iterator[AttentionState]
    """Each block's attention with the targets' gradients, the last block's first; to be read once."""


def attention_gradients(
    vit: nn.Module,
    model: FrameModel,
    frames: Frames,
    targets: Sequence[Target],
    *,
    memory: Memory = "keep",
) -> ClsPass:
    """Runs the model once; the pass's states then go backward from the last block to the first.

    Weights' gradients are not recorded. Weights, modes, hooks and `requires_grad` are as before when
    this returns, also where the model fails.

    Args:
        targets: C scalars of each frame; all share the forward pass.
        memory: `keep` holds every block's activations until the backward pass has passed it;
            `recompute` holds one block's, for about two more plain forward passes.

    Raises:
        UnsupportedModelError: see `check_vit`; or a target does not depend on the transformer, or
            depends on patch tokens without going through the CLS token.
    """
    graphs: Graphs = "blocks" if memory == "keep" else "heads"
    forward, values = run(vit, model, frames, targets, graphs=graphs, blocks="all")
    assert forward.grid is not None
    assert forward.scores is not None
    taps = [_tap_gradients(value, forward) for value in values]
    return ClsPass(forward.grid, forward.scores, _backward(vit, forward, taps))


def _backward(vit: nn.Module, forward: Forward, taps: list[list[Tensor | None]]) -> Iterator[AttentionState]:
    from_above: list[Tensor | None] = [None] * len(taps)
    while forward.blocks:
        trace = forward.blocks.pop()
        arriving = [_sum(above, tap.pop()) for above, tap in zip(from_above, taps, strict=True)]
        if trace.output is None:
            trace = _again(trace, vit)
        # Nobody asks what lies below the first block.
        wanted = [trace.mixed, trace.entered] if forward.blocks else [trace.mixed]
        found = _through_block(trace, arriving, wanted)
        from_above = [each[-1] for each in found]
        yield trace.state(torch.stack([each[0] for each in found]))


def _through_block(
    trace: BlockTrace, arriving: Sequence[Tensor | None], wanted: list[Any]
) -> list[Sequence[Tensor]]:
    """Each target's gradient from the block's output to the tensors wanted."""
    assert trace.output is not None
    found: list[Sequence[Tensor]] = []
    for gradient in arriving:
        if gradient is None:
            found.append([torch.zeros_like(each) for each in wanted])
            continue
        # The last target's pass gives the block's memory back.
        retain = len(found) + 1 < len(arriving)
        found.append(torch.autograd.grad(trace.output, wanted, gradient, retain_graph=retain))
    return found


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _tap_gradients(values: Tensor, forward: Forward) -> list[Tensor | None]:
    """Of a target with respect to each block's output, as the head reads it: None where it does not."""
    leaves: list[Any] = [trace.left for trace in forward.blocks]
    found: Sequence[Tensor | None] = [None]
    if values.requires_grad:
        found = torch.autograd.grad(
            values, leaves, torch.ones_like(values), retain_graph=True, allow_unused=True
        )
    read = [gradient for gradient in found if gradient is not None]
    if not read:
        raise UnsupportedModelError("the target does not depend on the transformer's blocks; choose another")
    if torch.stack([(gradient[:, 1:].abs() > 0).any() for gradient in read]).any():
        raise UnsupportedModelError(
            "the target reads other tokens than CLS, for example their mean; expected a head on the CLS token, "
            "from whose row of the attention all relevance is followed"
        )
    return list(found)


def last_attention_gradient(
    vit: nn.Module,
    model: FrameModel,
    frames: Frames,
    targets: Sequence[Target],
    change: Callable[[Normalised], Normalised],
    *,
    variants: int,
) -> Float[Tensor, "C B v h N"]:
    """What C targets gain from the attention of CLS to each token in the last block, of edited frames.

    Each frame is judged `variants` times in one forward pass; nothing is recorded below the last
    block's projection. The other rows of this gradient are zero: only CLS reaches the head.

    Args:
        change: from the normalised frames, each `variants` times in a row, to what the transformer is
            given in their place.

    Raises:
        UnsupportedModelError: as for `attention_gradients`.
    """
    of_variants = [_per_variant(target, len(frames)) for target in targets]
    with input_changed(vit, change):
        repeated = frames.repeat_interleave(variants, 0)
        forward, values = run(vit, model, repeated, of_variants, graphs="last", blocks="last")
    taps = [_tap_gradients(value, forward)[-1] for value in values]
    trace = forward.blocks[-1]
    found = _through_block(trace, taps, [trace.mixed])
    state = trace.state(torch.stack([of_mixed[:, :1] for (of_mixed,) in found]))
    return gradient_of_cls(state).unflatten(1, (len(frames), variants))


def input_gradient(
    vit: nn.Module,
    model: FrameModel,
    frames: Frames,
    targets: Sequence[Target],
    change: Callable[[Normalised], Normalised],
    *,
    variants: int,
) -> Float[Tensor, "C B v 3 h w"]:
    """What C targets gain from the pixels of edited frames; arguments as for `last_attention_gradient`."""
    check_vit(vit)
    leaves: list[Tensor] = []

    def start_graph(inputs: Normalised) -> Normalised:
        leaves.append(change(inputs).detach().clone().requires_grad_())
        torch.set_grad_enabled(True)
        return leaves[-1]

    with torch.inference_mode(False), torch.no_grad(), weights_frozen(vit), input_changed(vit, start_graph):
        scores = model(frames.repeat_interleave(variants, 0))
        values = [_per_variant(target, len(frames))(scores).sum() for target in targets]
    found = [torch.autograd.grad(value, leaves, retain_graph=True)[0] for value in values]
    return torch.stack(found).unflatten(1, (len(frames), variants))


def _per_variant(target: Target, count: int) -> Target:
    """The target of each frame's variants, which stand together."""

    def values(scores: Scores) -> Float[Tensor, " N"]:
        per_frame = scores.unflatten(0, (count, -1))
        return torch.stack([target(each) for each in per_frame.unbind(1)], 1).flatten()

    return values


def _again(trace: BlockTrace, vit: nn.Module) -> BlockTrace:
    """The block's forward pass once more, now with a graph."""
    again = BlockTrace(block=trace.block, entered=trace.entered.detach().requires_grad_())
    with (
        torch.enable_grad(),
        weights_frozen(vit),
        attention_traced(trace.block, lambda: again, start_graph=False),
    ):
        again.output = trace.block(again.entered)
    return again
