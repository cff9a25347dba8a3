"""A Vision Transformer with some of its patches taken out: their tokens, or all attention to and from them.

The model is unmodified: hooks that live inside a `with` edit what passes through it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from driving_xai.explain.vit.capture import check_vit
from driving_xai.metrics.curves import rank
from driving_xai.metrics.perturbation_curves import Stretch, scores_of_stretches
from driving_xai.models.forward_trace import removed_after
from driving_xai.perturb import pixel_counts
from driving_xai.types import FrameModel, Frames, Saliency, Scores

Masked = Bool[Tensor, "N T"]
"""Which of the T patches of each frame are taken out; in reading order."""

TokenMask = Literal["token", "attention", "attention-all-blocks"]
"""The patch's embedding is zero before its position is added; or rows and columns of the attention after
the softmax are zero, in the first block or in every block."""

FRACTIONS = tuple(step * 0.2 / 9 for step in range(10))
"""Of patches or pixels: ten points from 0 to 20 %, with which all 18 cells of the paper's Table 1 agree."""


@contextmanager
def tokens_masked(vit: Any, masked: Masked) -> Iterator[None]:
    """Zeroes the embeddings of patches before positions are added, in this thread's forward passes.

    Source: Zhu et al. 2024, section 4.5, Token Mask.
    """

    def zero(_layer: nn.Module, _inputs: tuple, embedded: Tensor) -> Tensor:
        # timm keeps the grid's two dimensions where the input size may vary.
        return embedded.masked_fill(masked.view(*embedded.shape[:-1], 1), 0)

    with removed_after([vit.patch_embed.register_forward_hook(_in_this_thread(zero))]):
        yield


@contextmanager
def attention_masked(
    vit: Any, masked: Masked, *, blocks: Literal["first", "all"] = "first"
) -> Iterator[None]:
    """Zeroes the attention to and from patches after the softmax, without renormalisation.

    A zero column j is the same as a zero value v_j, and a zero row i as a zero output (A V)_i: the
    model's fused attention goes on, and no N x N matrix exists.

    Source: Zhu et al. 2024, section 4.5, Attention Mask.
    Deviation: the paper does not name blocks; the authors' code masks the first, which is the default.
    """
    prefix = masked.new_zeros(len(masked), vit.num_prefix_tokens)
    rows = torch.cat([prefix, masked], 1).unsqueeze(2)

    def zero_values(_layer: nn.Module, _inputs: tuple, qkv: Tensor) -> Tensor:
        query_and_key, value = qkv.split((2 * qkv.shape[2] // 3, qkv.shape[2] // 3), 2)
        return torch.cat([query_and_key, value.masked_fill(rows, 0)], 2)

    def zero_outputs(_layer: nn.Module, inputs: tuple) -> tuple:
        return (inputs[0].masked_fill(rows, 0), *inputs[1:])

    def handles() -> Iterator[RemovableHandle]:
        for block in vit.blocks if blocks == "all" else vit.blocks[:1]:
            attention = block.attn
            after = getattr(attention, "norm", attention.proj)
            yield attention.qkv.register_forward_hook(_in_this_thread(zero_values))
            yield after.register_forward_pre_hook(_in_this_thread(zero_outputs))

    with removed_after(handles()):
        yield


@torch.no_grad()
def token_deletion(
    model: FrameModel,
    frames: Frames,
    ranks: Int64[Tensor, "B *methods T"],
    fractions: Sequence[float] = FRACTIONS,
    *,
    vit: nn.Module,
    mask: TokenMask = "token",
    batch_size: int = 32,
    clean: Scores | None = None,
) -> Float[Tensor, "B *methods V K"]:
    """The scores with a growing fraction of each frame's most salient patches masked.

    Exactly the nearest whole number of patches is masked, and nothing but patches: CLS and registers
    stay.

    Args:
        model: judges by `vit`.
        frames: unedited.
        ranks: of patches in reading order, one ranking a frame or one for each method; see
            `token_ranks`. All share the clean pass.
        fractions: rising, in [0, 1].
        vit: by which the model judges.
        mask: what is done to a patch.
        batch_size: most edited frames in one forward pass, but never fewer than B; changes scores by rounding only.
        clean: the scores of the unedited frames, where they are known.

    Raises:
        UnsupportedModelError: see `vit.capture.check_vit`.
        ValueError: see `perturb.pixel_counts`.
    """
    check_vit(vit)
    counts = pixel_counts(fractions, ranks.shape[-1]).to(ranks.device)
    masking, from_clean = counts[counts > 0], bool(counts[0] == 0)

    def judged(masked: Masked) -> Scores:
        with MASKS[mask](vit, masked):
            return model(frames.repeat_interleave(len(masked) // len(frames), 0))

    def of_first(
        some: Int64[Tensor, " V"], order: Int64[Tensor, "B T"], start: int, stop: int
    ) -> Bool[Tensor, "B v T"]:
        return order[:, None] < some[start:stop, None]

    orders = ranks.reshape(len(ranks), -1, ranks.shape[-1]).unbind(1)
    stretches = [Stretch(len(masking), partial(of_first, masking, order)) for order in orders]
    if from_clean and clean is None:
        stretches = [Stretch(1, partial(of_first, counts[:1], orders[0])), *stretches]
    found = scores_of_stretches(judged, stretches, frames=len(frames), batch_size=batch_size)
    if from_clean:
        whole, found = (found[0], found[1:]) if clean is None else (clean[:, None], found)
        found = [torch.cat([whole, each], 1) for each in found]
    return torch.stack(found, 1).reshape(*ranks.shape[:-1], len(counts), -1)


def token_ranks(
    saliency: Saliency, patches: tuple[int, int], generator: torch.Generator
) -> Int64[Tensor, "B T"]:
    """The position of each patch in the order from the most to the least salient, 0 first.

    A patch counts as the mean of the map over it; ties follow the generator, see `curves.rank`. That is for maps
    that were made on pixels, or come from elsewhere: the mean over a patch of a picture that was upsampled
    from one number a patch is that number blurred, and orders patches otherwise. Of the numbers themselves,
    `RankedMaps.cells`, the order is `curves.rank`.

    Args:
        patches: rows and columns of the grid.

    Raises:
        ValueError: the map's size is no multiple of the grid's.
    """
    height, width = saliency.shape[-2:]
    if height % patches[0] or width % patches[1]:
        raise ValueError(
            f"got a map of {height} x {width} px for {patches[0]} x {patches[1]} patches; expected a whole number "
            "of pixels for each; cut what lies beyond the last patch"
        )
    stride = (height // patches[0], width // patches[1])
    return rank(F.avg_pool2d(saliency.unsqueeze(1), stride).squeeze(1), generator)


def least_first(ranks: Int64[Tensor, "... P"]) -> Int64[Tensor, "... P"]:
    """Negative perturbation: the same order from its other end, the least salient first."""
    return ranks.shape[-1] - 1 - ranks


def _in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, idle while another thread runs the same model."""
    owner = threading.get_ident()

    def guarded(*arguments: Any) -> Any:
        return hook(*arguments) if threading.get_ident() == owner else None

    return guarded


MASKS: Mapping[TokenMask, Callable[[Any, Masked], AbstractContextManager[None]]] = {
    "token": tokens_masked,
    "attention": attention_masked,
    "attention-all-blocks": lambda vit, masked: attention_masked(vit, masked, blocks="all"),
}
