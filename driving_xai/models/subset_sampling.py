"""Learning to explain (L2X): subsets of k cells, sampled by a softmax with Gumbel noise.

Source: Chen, Song, Wainwright and Jordan 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.models.frozen_cnn import FrozenCNN
from driving_xai.models.small_cnn import SmallCNN, glorot
from driving_xai.types import Attention, FeatureMap, Frames, Outputs, Scores

TemperatureRule = Literal["divide", "multiply"]
Stack = SmallCNN | FrozenCNN


def union_of_samples(
    logits: Float[Tensor, "B n"],
    *,
    samples: int,
    tau: float = 0.1,
    temperature: TemperatureRule = "divide",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B n"]:
    """The elementwise maximum of independent samples softmax((logits + Gumbel noise) / tau).

    As tau goes to 0 each sample becomes one cell, drawn with probability softmax(logits), and the
    maximum the union of at most `samples` cells: the same cell may be drawn twice.

    Args:
        temperature: `multiply` has tau * (logits + noise), as the bounded-logit authors' code does. With
            tau = 0.1 that is a temperature of 10, at which samples are nearly uniform.
        generator: on the logits' device; None takes torch's own.

    Returns:
        Weights in (0, 1].

    Source: Chen et al. 2018, section 3.3.
    """
    uniform = torch.rand(
        (samples, *logits.shape), generator=generator, dtype=logits.dtype, device=logits.device
    )
    # u is below 1, but may be 0, where the noise would be infinite.
    noisy = logits - (-uniform.clamp_min(torch.finfo(logits.dtype).tiny).log()).log()
    return torch.softmax(noisy / tau if temperature == "divide" else noisy * tau, dim=-1).amax(0)


def top_k(logits: Float[Tensor, "B n"], *, k: int) -> Float[Tensor, "B n"]:
    """1 on the k cells of the largest logits, the first of equal ones; 1 everywhere where n <= k."""
    order = logits.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(logits).scatter_(1, order, 1.0)


@dataclass(frozen=True, kw_only=True)
class L2XConfig:
    """Two convolution stacks: one selects patches of the frame, one judges what is left."""

    classes: tuple[str, ...]
    subset_size: int = 4
    """Patches that are left."""
    tau: float = 0.1
    temperature: TemperatureRule = "divide"
    channels: tuple[int, ...] = (8, 16, 16)
    kernel: int = 5
    pooled: int = 2
    """A patch has 2 ** pooled pixels on each side."""
    colour: Literal["rgb", "grey"] = "grey"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or self.subset_size < 1 or not self.tau > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"classes are {self.classes}, subset_size is {self.subset_size}, tau {self.tau}, dropout "
                f"{self.dropout}; expected two or more, 1 or more, over 0, and 0 up to 1"
            )


class L2XModel(nn.Module):
    """Selects k patches of a frame, blackens the others, and judges the rest.

    Trains on the soft union of k samples and judges by the k likeliest patches.

    Source: Chen et al. 2018, as Baumhauer et al. 2021 set it up in section 4.1.
    Deviation: the judging stack pools the mean of its cells, as the baseline that it is compared with does.

    Example:
        >>> model = L2XModel(L2XConfig(classes=("three", "eight"))).eval()
        >>> model.selection(torch.rand(2, 3, 28, 28)).sum((1, 2))
        tensor([4., 4.])
    """

    def __init__(self, config: L2XConfig, *, stacks: tuple[Stack, Stack] | None = None) -> None:
        """Builds two small stacks, or takes two that are made: one selects, one judges.

        Args:
            stacks: with the weights that they have; `channels`, `kernel`, `pooled` and `colour` are then theirs.
        """
        super().__init__()
        self.config = config
        self.outputs = Outputs(kind="multiclass", names=config.classes)
        self.explainer, self.backbone = stacks or (_small(config), _small(config))
        self.explain = nn.Conv2d(self.explainer.channels, 1, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.classify = nn.Linear(self.backbone.channels, len(config.classes))
        for part in (self,) if stacks is None else (self.explain, self.classify):
            part.apply(glorot)

    @property
    def feature_map(self) -> FeatureMap:
        """The end of the stack that classifies; its cells are the patches."""
        return self.backbone.feature_map

    def forward(
        self,
        frames: Frames,
        *,
        explanation: Literal["soft", "hard"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Scores:
        """The scores of the patches that are left.

        Args:
            explanation: a soft, sampled mask or the k likeliest patches. None: soft in training, else hard.
            generator: of the samples; None takes torch's own.
        """
        logits = self._logits(frames)
        if explanation == "soft" or (explanation is None and self.training):
            mask = union_of_samples(
                logits.flatten(1),
                samples=self.config.subset_size,
                tau=self.config.tau,
                temperature=self.config.temperature,
                generator=generator,
            )
        else:
            mask = top_k(logits.flatten(1), k=self.config.subset_size)
        return self.judge(frames, mask.unflatten(1, logits.shape[1:]))

    def judge(self, frames: Frames, mask: Float[Tensor, "B h w"]) -> Scores:
        """The scores of frames whose patches are multiplied by a mask."""
        side = frames.shape[2] // mask.shape[1]
        patches = mask.repeat_interleave(side, 1).repeat_interleave(side, 2)
        return self.classify(self.dropout(self.backbone(frames * patches[:, None]).mean((2, 3))))

    def attention(self, frames: Frames) -> Attention:
        """The distribution that patches are drawn from; sums to one."""
        logits = self._logits(frames)
        return torch.softmax(logits.flatten(1), 1).view_as(logits)

    def selection(self, frames: Frames) -> Float[Tensor, "B h w"]:
        """1 on the patches that the prediction rests on, 0 elsewhere."""
        logits = self._logits(frames)
        return top_k(logits.flatten(1), k=self.config.subset_size).view_as(logits)

    def _logits(self, frames: Frames) -> Float[Tensor, "B h w"]:
        height, width = frames.shape[2:]
        logits = self.explain(self.explainer(frames)).squeeze(1)
        rows, columns = logits.shape[1:]
        # Pools leave out what is over: the number of patches alone would not tell.
        side = 2**self.explainer.pooled if isinstance(self.explainer, SmallCNN) else height // rows
        if (rows * side, columns * side) != (height, width):
            raise ValueError(f"frames are {height} x {width}; expected multiples of {side}, a patch")
        return logits


def _small(config: L2XConfig) -> SmallCNN:
    return SmallCNN(
        channels=config.channels, kernel=config.kernel, pooled=config.pooled, colour=config.colour
    )
