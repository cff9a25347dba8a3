"""Small random Vision Transformers, and the explainers' equations written out with whole matrices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from driving_xai.types import Outputs


class TappedViT(nn.Module):
    """A timm ViT whose head reads the CLS tokens of its last blocks after the final norm."""

    def __init__(self, *, taps: int = 2, actions: int = 4, **changes: Any) -> None:
        super().__init__()
        size: dict[str, Any] = {
            "img_size": (24, 40),
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 4,
            "num_heads": 3,
            "num_classes": 0,
        }
        self.vit = VisionTransformer(**{**size, **changes})
        self.taps = taps
        self.head = nn.Linear(taps * self.vit.embed_dim, actions)
        self.outputs = Outputs(kind="multilabel", names=tuple(f"action {i}" for i in range(actions)))
        # timm's initial weights make attention nearly uniform and every norm alike.
        generator = torch.Generator().manual_seed(0)
        for weight in self.parameters():
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.3 + (weight.dim() == 1))
        self.double().eval()

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(torch.cat(self.cls(self.normalised(frames)), 1))

    def normalised(self, frames: Tensor) -> Tensor:
        return (frames - 0.45) / 0.25

    def cls(self, inputs: Tensor) -> list[Tensor]:
        taken = self.vit.get_intermediate_layers(inputs, self.taps, return_prefix_tokens=True, norm=True)
        return [prefix[:, 0] for _, prefix in taken]


class Dense(NamedTuple):
    """Every block's whole matrices for one frame and one target."""

    attention: list[Tensor]  # [h N N]
    gradient: list[Tensor]  # [h N N]
    values: list[Tensor]  # v_j W_O by head, [h N D]


def dense(model: TappedViT, inputs: Tensor, column: int) -> Dense:
    """A forward pass with explicit attention of one normalised frame [3 H W], and autograd's gradients."""
    vit = model.vit
    z = vit.norm_pre(vit._pos_embed(vit.patch_embed(inputs[None])))[0]
    attentions, values, taps = [], [], []
    for block in vit.blocks:
        attention = block.attn
        heads, (tokens, width) = attention.num_heads, z.shape
        q, k, v = attention.qkv(block.norm1(z)).view(tokens, 3, heads, width // heads).permute(1, 2, 0, 3)
        q, k = attention.q_norm(q), attention.k_norm(k)
        a = (q @ k.mT * attention.scale).softmax(-1)
        attentions.append(a)
        by_head = attention.proj.weight.T.view(heads, width // heads, width)
        gamma = block.ls1.gamma if hasattr(block.ls1, "gamma") else 1.0
        values.append(((v @ by_head) * gamma).detach())
        z = z + block.ls1(attention.proj((a @ v).transpose(0, 1).reshape(tokens, width)))
        z = z + block.ls2(block.mlp(block.norm2(z)))
        taps.append(vit.norm(z)[0])
    logit = model.head(torch.cat(taps[-model.taps :]))[column]
    gradients = torch.autograd.grad(logit, attentions)
    return Dense([a.detach() for a in attentions], list(gradients), values)


def product(factors: list[Tensor], order: str) -> Tensor:
    """Row 0 of the product of the blocks' matrices, the last block's leftmost in the order of the flow."""
    whole = torch.eye(len(factors[0]), dtype=factors[0].dtype)
    for factor in factors:
        whole = factor @ whole if order == "flow" else whole @ factor
    return whole[0]


def relevance_factors(found: Dense, norms: str) -> list[Tensor]:
    """Ā = I + mean_h (A ν ∇A)⁺ of each block, the first block's first."""
    factors = []
    for a, gradient, value in zip(*found, strict=True):
        nu = value.norm(dim=-1)
        weight = {"none": torch.ones_like(a), "key": nu[:, None, :], "query": nu[:, :, None]}[norms]
        factors.append(torch.eye(a.shape[-1], dtype=a.dtype) + (a * weight * gradient).clamp(min=0).mean(0))
    return factors


def masked_scores(model: TappedViT, frame: Tensor, masked: Tensor, mask: str) -> Tensor:
    """One frame's scores, with explicit attention whose rows and columns are zeroed."""
    vit = model.vit
    embedded = vit.patch_embed(model.normalised(frame)[None])
    if mask == "token":
        embedded = embedded * (~masked).view(1, *embedded.shape[1:-1], 1)
    z = vit.norm_pre(vit._pos_embed(embedded))[0]
    kept = torch.cat([torch.ones(vit.num_prefix_tokens), (~masked).double()])
    taps = []
    for index, block in enumerate(vit.blocks):
        attention = block.attn
        heads, (tokens, width) = attention.num_heads, z.shape
        q, k, v = attention.qkv(block.norm1(z)).view(tokens, 3, heads, width // heads).permute(1, 2, 0, 3)
        a = (attention.q_norm(q) @ attention.k_norm(k).mT * attention.scale).softmax(-1)
        if mask == "attention-all-blocks" or (mask == "attention" and index == 0):
            a = a * kept[:, None] * kept
        mixed = (a @ v).transpose(0, 1).reshape(tokens, width)
        # A row of zeros stays one: what follows the attention is not asked about it.
        mixed = attention.norm(mixed)
        z = z + block.ls1(attention.proj(mixed))
        z = z + block.ls2(block.mlp(block.norm2(z)))
        taps.append(vit.norm(z)[0])
    return model.head(torch.cat(taps[-model.taps :]))
