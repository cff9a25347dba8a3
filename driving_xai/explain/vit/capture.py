"""An unmodified timm Vision Transformer, read through hooks that live only inside a `with`.

The model's own fused attention stays on: attention is rebuilt from queries and keys by whoever needs
it. The backward pass goes block by block, so that several targets share one forward pass, and a
block's memory is given back before the block below it is touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.grid import Cells, to_frame_grid
from driving_xai.models.forward_trace import removed_after
from driving_xai.types import FrameModel, Frames, Scores, Target

Normalised = Float[Tensor, "B 3 h w"]
"""What the transformer itself is given: frames after the model's own resizing and normalisation."""

Graphs = Literal["none", "heads", "last", "blocks"]
"""What a forward pass records: nothing; only what reads the blocks' outputs; that and the last block
from its projection on; that and every block."""


class AttentionState(NamedTuple):
    """One block's attention over N tokens of B frames, in float32, or float64 where the model is."""

    query: Float[Tensor, "B h N d"]
    """As the scores use it: after the block's own normalisation, times the scale."""
    key: Float[Tensor, "B h N d"]
    value: Float[Tensor, "B h N d"]
    projection: Float[Tensor, "h d D"] | None
    """From a head's output to what it adds to the residual stream, LayerScale included; None where the
    block normalises or gates the heads' outputs, so that there is no such linear map."""
    gradient: Float[Tensor, "C B h N d"] | None = None
    """Of C targets with respect to the heads' outputs A_h V_h; None where none was asked for."""


@dataclass(frozen=True, kw_only=True)
class TokenGrid:
    """Where the patch tokens of a forward pass lie."""

    rows: int
    columns: int
    prefix: int
    """Tokens before the patches: CLS, then registers."""
    patch_px: tuple[int, int]
    input_px: tuple[int, int]
    """Height and width of what the transformer itself was given."""

    def on_frames(self, relevance: Float[Tensor, "C B N"], frames: Frames) -> Float[Tensor, "B C H W"]:
        """The patch tokens' relevance on the frame grid, bilinear between the patches' centres."""
        targets, count = relevance.shape[:2]
        maps = relevance[..., self.prefix :].transpose(0, 1).reshape(-1, self.rows, self.columns)
        return to_frame_grid(maps, frames, self._cells(frames)).unflatten(0, (count, targets))

    def _cells(self, frames: Frames) -> Cells | None:
        """A patch of p pixels is centred at (p - 1) / 2 + i p, also where the frame was cut or padded to
        whole patches; of frames that the model resizes, the cells are spread evenly."""
        stride = self.patch_px[0]
        sides = zip(self.input_px, frames.shape[-2:], strict=True)
        if self.patch_px != (stride, stride) or any(abs(given - side) >= stride for given, side in sides):
            return None
        return Cells((stride - 1) / 2, stride)


@dataclass(kw_only=True)
class BlockTrace:
    """One block's part of a forward pass. With a graph, `output` leads back to `mixed` and `entered`."""

    block: Any
    entered: Tensor
    output: Tensor | None = None
    left: Tensor | None = None
    """A leaf equal to the output: what the next block and the head have seen."""
    qkv: Tensor | None = None
    mixed: Tensor | None = None
    """The heads' outputs side by side, before they are normalised, gated or projected."""

    def state(self, gradient: Tensor | None = None) -> AttentionState:
        attention, qkv = self.block.attn, self.qkv
        assert qkv is not None
        heads = attention.num_heads
        parts = qkv.detach().unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = attention.q_norm(parts[0]), attention.k_norm(parts[1]), parts[2]
        exact = _accumulator(qkv.dtype)
        return AttentionState(
            query.to(exact) * attention.scale,
            key.to(exact),
            value.to(exact),
            _projection(self.block, exact),
            None if gradient is None else gradient.unflatten(3, (heads, -1)).transpose(2, 3).to(exact),
        )


@dataclass(kw_only=True)
class Forward:
    """What a traced forward pass left behind."""

    blocks: list[BlockTrace] = field(default_factory=list)
    grid: TokenGrid | None = None
    scores: Scores | None = None


def check_vit(vit: nn.Module) -> None:
    """Makes sure that the relevance of a CLS token can be read from this transformer.

    Raises:
        UnsupportedModelError: it has no blocks with fused projections of queries, keys and values, no
            CLS token, or checkpoints its own gradients.
    """
    name, blocks = type(vit).__name__, getattr(vit, "blocks", ())
    parts = ("qkv", "q_norm", "k_norm", "proj", "num_heads", "scale")
    attentions = [getattr(block, "attn", None) for block in blocks]
    if not attentions or not all(hasattr(each, part) for each in attentions for part in parts):
        raise UnsupportedModelError(
            f"{name} has no blocks with attn.{', attn.'.join(parts)}; expected timm's VisionTransformer"
        )
    # Others compute attention otherwise, with rotated positions, say: what is rebuilt here would be wrong.
    foreign = {type(each).__name__ for each in (*blocks, *attentions)} - {"Block", "Attention"}
    if foreign == {"OptimizedModule"}:
        raise UnsupportedModelError(
            f"{name} has blocks that torch.compile has replaced; give it with the blocks as they were, or compile the "
            "whole network"
        )
    if foreign:
        raise UnsupportedModelError(
            f"{name} is built of {', '.join(sorted(foreign))}; expected timm's Block and Attention, whose attention "
            "is softmax(q k^T)"
        )
    if getattr(vit, "cls_token", None) is None:
        raise UnsupportedModelError(f"{name} has no CLS token whose attention could be followed")
    if getattr(vit, "grad_checkpointing", False):
        raise UnsupportedModelError(
            f"{name} checkpoints its own gradients; call set_grad_checkpointing(False), and ask the explainer "
            "for memory='recompute' instead"
        )


def attention_states(
    vit: nn.Module, model: FrameModel, frames: Frames, *, blocks: Literal["all", "last"] = "all"
) -> tuple[TokenGrid, Iterator[AttentionState]]:
    """Runs the model once; the iterator then gives each block's attention, the last block's first.

    Raises:
        UnsupportedModelError: see `check_vit`; or a block did not run exactly once.
    """
    forward, _ = run(vit, model, frames, (), graphs="none", blocks=blocks)
    assert forward.grid is not None
    return forward.grid, (forward.blocks.pop().state() for _ in range(len(forward.blocks)))


def normalised_input(vit: nn.Module, model: FrameModel, frames: Frames) -> tuple[Normalised, Scores]:
    """What the transformer is given for these frames, and the model's scores."""
    seen: list[Tensor] = []

    def look(inputs: Normalised) -> Normalised:
        seen.append(inputs.detach())
        return inputs

    with torch.no_grad(), input_changed(vit, look):
        scores = model(frames)
    return seen[0], scores


@contextmanager
def input_changed(vit: Any, change: Callable[[Normalised], Normalised]) -> Iterator[None]:
    """Gives the transformer edited frames: `change` sees them as the model has normalised them."""
    owner = threading.get_ident()

    def enter(_module: nn.Module, inputs: tuple) -> tuple | None:
        return (change(inputs[0]),) if threading.get_ident() == owner else None

    with removed_after([vit.patch_embed.register_forward_pre_hook(enter)]):
        yield


def run(
    vit: Any,
    model: FrameModel,
    frames: Frames,
    targets: Sequence[Target],
    *,
    graphs: Graphs,
    blocks: Literal["all", "last"],
) -> tuple[Forward, list[Float[Tensor, " B"]]]:
    check_vit(vit)
    if vit.training:
        raise UnsupportedModelError(
            f"{type(vit).__name__} is in training mode; call eval() on the model first"
        )
    forward, traced = Forward(), list(vit.blocks if blocks == "all" else vit.blocks[-1:])
    # Leaving `no_grad` restores the caller's grad mode, whatever the hooks have set.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        weights_frozen(vit),
        _traced(vit, traced, forward, graphs),
    ):
        scores = model(frames)
        forward.scores = scores.detach()
        values = [target(scores) for target in targets]
    if forward.grid is None or len(forward.blocks) != len(traced):
        raise UnsupportedModelError(
            f"{len(forward.blocks)} blocks ran in one forward pass of {type(model).__name__}, expected each of "
            f"{len(traced)} once; give the transformer that this model judges with"
        )
    return forward, values


@contextmanager
def _traced(vit: Any, blocks: Sequence[Any], forward: Forward, graphs: Graphs) -> Iterator[None]:
    """Writes what this thread's forward pass goes through into `forward`."""
    owner = threading.get_ident()

    def embed(projection: nn.Module, inputs: tuple, output: Tensor) -> None:
        if threading.get_ident() == owner:
            height, width = inputs[0].shape[-2:]
            stride = getattr(projection, "stride", vit.patch_embed.patch_size)
            forward.grid = TokenGrid(
                rows=output.shape[2],
                columns=output.shape[3],
                prefix=vit.num_prefix_tokens,
                patch_px=tuple(stride),
                input_px=(height, width),
            )

    def enter(block: nn.Module, inputs: tuple) -> tuple | None:
        if threading.get_ident() != owner:
            return None
        torch.set_grad_enabled(graphs == "blocks")
        entered = inputs[0].detach().requires_grad_(graphs == "blocks")
        forward.blocks.append(BlockTrace(block=block, entered=entered))
        return (entered, *inputs[1:])

    def leave(_block: nn.Module, _inputs: tuple, output: Tensor) -> Tensor | None:
        if threading.get_ident() != owner:
            return None
        trace = forward.blocks[-1]
        trace.output = output if output.requires_grad else None
        trace.left = output.detach().requires_grad_(graphs != "none")
        torch.set_grad_enabled(graphs != "none")
        return trace.left

    def handles() -> Iterator[RemovableHandle]:
        yield vit.patch_embed.proj.register_forward_hook(embed)
        for block in blocks:
            yield block.register_forward_pre_hook(enter)
            yield block.register_forward_hook(leave)

    with removed_after(handles()), ExitStack() as stack:
        for block in blocks:
            start = graphs == "last"
            stack.enter_context(attention_traced(block, lambda: forward.blocks[-1], start_graph=start))
        yield


@contextmanager
def attention_traced(block: Any, trace: Callable[[], BlockTrace], *, start_graph: bool) -> Iterator[None]:
    """Writes the block's queries, keys, values and heads' outputs into its trace."""
    owner = threading.get_ident()

    def projected(_layer: nn.Module, _inputs: tuple, output: Tensor) -> None:
        if threading.get_ident() == owner:
            trace().qkv = output

    def mixed(_layer: nn.Module, inputs: tuple) -> tuple | None:
        if threading.get_ident() != owner:
            return None
        trace().mixed = inputs[0]
        if not start_graph:
            return None
        trace().mixed = leaf = inputs[0].detach().requires_grad_()
        torch.set_grad_enabled(True)
        return (leaf,)

    def handles() -> Iterator[RemovableHandle]:
        yield block.attn.qkv.register_forward_hook(projected)
        yield getattr(block.attn, "norm", block.attn.proj).register_forward_pre_hook(mixed)

    with removed_after(handles()):
        yield


@contextmanager
def weights_frozen(vit: nn.Module) -> Iterator[None]:
    """Records no graph towards the weights: without it, a block holds half as much again."""
    frozen = [weight for weight in vit.parameters() if weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(True)


def _projection(block: Any, exact: torch.dtype) -> Float[Tensor, "h d D"] | None:
    attention = block.attn
    if not isinstance(getattr(attention, "norm", None) or nn.Identity(), nn.Identity):
        return None
    if getattr(attention, "gate", None) is not None:
        return None
    weight = attention.proj.weight.detach().to(exact).T.unflatten(0, (attention.num_heads, -1))
    scale = getattr(getattr(block, "ls1", None), "gamma", None)
    return weight if scale is None else weight * scale.detach().to(exact)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """Relevance is summed in float32 at least: half precision loses the sign of small gradients."""
    return torch.float64 if dtype == torch.float64 else torch.float32
