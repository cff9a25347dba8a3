"""Bounded logit attention: a classifier that pools only the cells of its feature map that it selects.

Source: Baumhauer, Slijepcevic and Zeppelzauer 2021; L2X-F after Chen et al. 2018.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.models.frozen_cnn import FrozenCNN
from driving_xai.models.small_cnn import SmallCNN, glorot
from driving_xai.models.subset_sampling import TemperatureRule, top_k, union_of_samples
from driving_xai.types import Attention, FeatureMap, Frames, Outputs, OwnMap, Scores

Weights = Float[Tensor, "B n"]
"""Of the n cells of a feature map, in reading order."""
Features = Float[Tensor, "B n C"]
"""The feature map's cells in reading order, each with its C channels."""
Explanation = Literal["soft", "hard"]
Thresholding = Literal["excess", "renormalised", "straight-through", "indicator"]
HardRule = Literal["maximal", "zero-logit"]
AttentionKind = Literal["bla", "bla-t", "l2x-f", "sigmoid", "concept"]


@dataclass(frozen=True, kw_only=True)
class BoundedLogitConfig:
    """The architecture. Defaults follow the authors' code where it and the paper differ."""

    classes: tuple[str, ...] = ()
    """Names of the outputs; training takes them from the shards."""
    output_kind: Literal["multiclass", "multilabel"] = "multiclass"
    attention: Literal["none"] | AttentionKind = "bla-t"
    """none is the baseline, which pools the mean. The paper's two attempts with other contexts: sigmoid weighs each
    cell by itself, as CBAM does; concept is bla whose logits also see a vector made of all cells (Jetley et al.)."""
    predicts: Literal["selection", "all-cells"] = "selection"
    """What a prediction rests on: the hard selection, or all cells as the baseline; the latter leaves the predictions
    of the network that bla-ph explains as they are."""
    theta: float = 0.1
    """Multiplies the bounded logits before the softmax: a temperature of 10."""
    gamma: float | None = None
    """bla-t's threshold on soft weights; None is 0.98 / n, with 49 cells 0.02."""
    thresholding: Thresholding = "excess"
    """What bla-t pools with while training; see `thresholded`."""
    hard: HardRule = "maximal"
    """Which cells a hard explanation selects; see `hard_selection`."""
    subset_size: int = 8
    """Cells that l2x-f selects."""
    tau: float = 0.1
    """Of l2x-f's Gumbel-softmax samples."""
    temperature: TemperatureRule = "divide"
    """Whether tau divides, as L2X defines it, or multiplies, as the authors' code has it."""
    cells: int | None = None
    """Of the feature map, which concept makes its vector of; training takes it from the images."""
    dropout: float = 0.2
    units: Literal["each", "difference"] = "each"
    """A unit for each class, or for two classes one unit z, whose scores are (-z/2, z/2): a sigmoid."""
    backbone: str = "small-cnn"
    """small-cnn, which learns, or a convolutional network by its timm name, frozen: efficientnet_b0."""
    channels: tuple[int, ...] = (8, 16, 16)
    """Of small-cnn's convolutions; see `small_cnn.SmallCNN` for this and the next three."""
    kernel: int = 5
    pooled: int = 2
    colour: Literal["rgb", "grey"] = "grey"

    def __post_init__(self) -> None:
        names = self.classes
        if len(set(names)) < len(names) or (len(names) == 1 and self.output_kind == "multiclass"):
            raise ValueError(f"classes are {list(names)}; expected two names or more, none twice")
        if self.units == "difference" and (len(names) not in (0, 2) or self.output_kind != "multiclass"):
            raise ValueError("units is 'difference'; expected 'each' for anything but two classes")
        if not self.theta > 0 or not self.tau > 0 or not 0 <= self.dropout < 1 or self.subset_size < 1:
            raise ValueError(
                f"theta is {self.theta}, tau {self.tau}, dropout {self.dropout}, subset_size {self.subset_size}; "
                "expected over 0, over 0, 0 up to 1, and 1 or more"
            )
        if self.gamma is not None and not 0 <= self.gamma < 1:
            raise ValueError(f"gamma is {self.gamma}; expected 0 up to 1, or none for 0.98 / n")

    @property
    def outputs(self) -> Outputs:
        """What the columns of the scores mean."""
        return Outputs(kind=self.output_kind, names=self.classes)


def soft_selection(logits: Weights, *, theta: float) -> Weights:
    """q = softmax(theta * logits); sums to one. Source: Baumhauer et al. 2021, section 3.1."""
    return torch.softmax(theta * logits, dim=1)


def thresholded(soft: Weights, *, gamma: float, rule: Thresholding) -> Weights:
    """What bla-t pools with in place of q: cells at or under gamma get nothing.

    - excess: (q - gamma)^+, which sums to 1 - k gamma for k cells above the threshold, and at most to
      that of the k equal winners: hard weights, which sum to one, then meet a head trained on less.
    - renormalised: the same divided by its sum; all zero where no cell is above.
    - straight-through: 1[q > gamma] forward, the gradient of q backward.
    - indicator: 1[q > gamma], the paper's equation. It has no gradient: what is before it never learns.

    Source: Baumhauer et al. 2021, eq. 2.
    Deviation: the default is what the authors' code computes, not the equation.
    """
    excess = (soft - gamma).relu()
    if rule == "excess":
        return excess
    if rule == "renormalised":
        # Where nothing is above, the sum is 0 and so is every part of it.
        return excess / excess.sum(1, keepdim=True).clamp_min(torch.finfo(soft.dtype).tiny)
    indicator = (soft > gamma).to(soft.dtype)
    return indicator if rule == "indicator" else indicator + soft - soft.detach()


def hard_selection(logits: Weights, *, rule: HardRule) -> Weights:
    """Equal weights on the selected cells: those of the largest logit, or of logit 0.

    With bounded logits the two differ where every cell was rejected (g < 0): `maximal` then keeps the
    best one, `zero-logit` none, so that nothing is pooled.

    Source: Baumhauer et al. 2021, section 3.1 (zero-logit). Deviation: the default is the authors' code's.
    """
    best = logits.amax(1, keepdim=True) if rule == "maximal" else torch.zeros_like(logits[:, :1])
    chosen = (logits >= best).to(logits.dtype)
    return chosen / chosen.sum(1, keepdim=True).clamp_min(1)


class AttentiveHead(nn.Module):
    """Selects cells of a feature map, pools them, and judges what it pooled.

    Trains on soft selections and judges by hard ones. Any feature map serves, also one kept on disk:
    `BoundedLogitModel` is this behind a convolution stack.

    Example:
        >>> head = AttentiveHead(BoundedLogitConfig(classes=("cat", "dog")), channels=16).eval()
        >>> features = torch.rand(5, 49, 16)
        >>> head(features).shape, head.select(features).sum(1).allclose(torch.ones(5))
        (torch.Size([5, 2]), True)
    """

    def __init__(self, config: BoundedLogitConfig, *, channels: int) -> None:
        super().__init__()
        self.config = config
        # A 1 x 1 convolution with one filter.
        self.explain = None if config.attention == "none" else nn.Linear(channels, 1)
        if config.attention == "concept":
            if config.cells is None:
                raise ValueError("cells is not set; say how many cells the feature map has")
            self.concept = nn.Linear(config.cells * channels, channels, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        if not config.classes:
            raise ValueError("classes are not set; name the outputs")
        self.classify = nn.Linear(channels, 1 if config.units == "difference" else len(config.classes))
        self.apply(glorot)

    def forward(
        self,
        features: Features,
        *,
        explanation: Explanation | None = None,
        generator: torch.Generator | None = None,
    ) -> Scores:
        """The scores of what is selected.

        Args:
            explanation: pools with soft weights or with hard ones. None: soft in training, else what `predicts` says.
            generator: of l2x-f's samples, which soft explanations draw; None takes torch's own.
        """
        chosen = explanation or ("soft" if self.training else "hard")
        if explanation is None and not self.training and self.config.predicts == "all-cells":
            weights = _even(features)
        else:
            weights = self._pooling(features, chosen, generator)
        return self.judge(torch.einsum("bn,bnc->bc", weights, features))

    def judge(self, pooled: Float[Tensor, "B C"]) -> Scores:
        """The scores of pooled features."""
        scores = self.classify(self.dropout(pooled))
        return torch.cat((-scores, scores), 1) / 2 if self.config.units == "difference" else scores

    def logits(self, features: Features) -> Weights:
        """What each cell's selection rests on: g, for bla, bla-t and concept bounded to min(g, 0).

        Raises:
            UnsupportedModelError: the head has no attention, or was built for feature maps of another size.
        """
        if self.explain is None:
            raise UnsupportedModelError("this model was built with attention 'none': it selects nothing")
        if self.config.attention == "concept":
            features = features + self._concept_of(features)[:, None]
        g = self.explain(features).squeeze(2)
        return g if self.config.attention in ("l2x-f", "sigmoid") else g.clamp_max(0)

    def _concept_of(self, features: Features) -> Float[Tensor, "B C"]:
        if features.shape[1] != self.config.cells:
            raise UnsupportedModelError(
                f"the feature map has {features.shape[1]} cells and this model was trained with {self.config.cells}; "
                "give frames of that size"
            )
        return self.concept(features.flatten(1))

    def attend(self, features: Features) -> Weights:
        """The soft explanation q, which sums to one: of l2x-f the distribution it samples from.

        Sigmoid's cells do not compete: each is in (0, 1) by itself, and they sum to anything.
        """
        if self.config.attention == "sigmoid":
            return self.logits(features).sigmoid()
        theta = 1.0 if self.config.attention == "l2x-f" else self.config.theta
        return soft_selection(self.logits(features), theta=theta)

    def select(self, features: Features) -> Weights:
        """The hard explanation: equal weights on the selected cells, which sum to one.

        Of sigmoid those over one half, or else the best: the paper names no rule.
        """
        logits = self.logits(features)
        if self.config.attention == "sigmoid":
            return hard_selection(logits.clamp_max(0), rule="maximal")
        if self.config.attention == "l2x-f":
            return top_k(logits, k=self.config.subset_size) / min(self.config.subset_size, logits.shape[1])
        return hard_selection(logits, rule=self.config.hard)

    def _pooling(
        self, features: Features, explanation: Explanation, generator: torch.Generator | None
    ) -> Weights:
        config, cells = self.config, features.shape[1]
        if config.attention == "none":
            return _even(features)
        if explanation == "hard":
            return self.select(features)
        if config.attention == "l2x-f":
            union = union_of_samples(
                self.logits(features),
                samples=config.subset_size,
                tau=config.tau,
                temperature=config.temperature,
                generator=generator,
            )
            # The code's temperature makes masks whose mass is near one; L2X's have a mass of up to k.
            return union / config.subset_size if config.temperature == "divide" else union
        soft = self.attend(features)
        if config.attention in ("bla", "concept"):
            return soft
        if config.attention == "sigmoid":
            return soft / cells
        gamma = 0.98 / cells if config.gamma is None else config.gamma
        return thresholded(soft, gamma=gamma, rule=config.thresholding)


def _even(features: Features) -> Weights:
    """The weights of a mean over all cells."""
    return features.new_full(features.shape[:2], 1 / features.shape[1])


class BoundedLogitModel(nn.Module):
    """A convolution stack and an attentive head: a frame model that shows what it selected.

    Frames are RGB in [0, 1], of any size that the stack takes; colour and normalisation happen inside.

    Example:
        >>> model = BoundedLogitModel(BoundedLogitConfig(classes=("three", "eight"))).eval()
        >>> frames = torch.rand(2, 3, 28, 28)
        >>> model(frames).shape, model.attention(frames).shape
        (torch.Size([2, 2]), torch.Size([2, 7, 7]))
    """

    def __init__(self, config: BoundedLogitConfig) -> None:
        super().__init__()
        self.config, self.outputs = config, config.outputs
        self.backbone: SmallCNN | FrozenCNN = (
            SmallCNN(
                channels=config.channels, kernel=config.kernel, pooled=config.pooled, colour=config.colour
            )
            if config.backbone == "small-cnn"
            else FrozenCNN(config.backbone)
        )
        self.head = AttentiveHead(config, channels=self.backbone.channels)

    @property
    def feature_map(self) -> FeatureMap:
        """What the head pools; only where all cells are pooled does a plain mean turn into the scores."""
        takes_all = self.config.attention == "none" or self.config.predicts == "all-cells"
        pools_the_mean = takes_all and self.config.units == "each"
        return replace(self.backbone.feature_map, head=self.head.classify if pools_the_mean else None)

    @property
    def own_maps(self) -> Mapping[str, OwnMap]:
        """The soft and the hard explanation, by their methods' names."""
        if self.config.attention == "none":
            return {}
        soft = OwnMap(read="attention", cells=self.backbone.feature_map.cells)
        if self.config.attention == "l2x-f":
            return {"l2x-f": soft}
        return {"bla": soft, "bla-hard": replace(soft, read="selection")}

    def forward(
        self,
        frames: Frames,
        *,
        explanation: Explanation | None = None,
        generator: torch.Generator | None = None,
    ) -> Scores:
        """Judges each frame; see `AttentiveHead.forward`."""
        return self.head(cells_of(self.backbone(frames)), explanation=explanation, generator=generator)

    def attention(self, frames: Frames) -> Attention:
        """The soft explanation q; sums to one.

        Raises:
            UnsupportedModelError: the model has no attention.
        """
        maps = self.backbone(frames)
        return self.head.attend(cells_of(maps)).unflatten(1, maps.shape[2:])

    def selection(self, frames: Frames) -> Attention:
        """The hard explanation, which the prediction rests on unless it takes all cells; sums to one.

        Raises:
            UnsupportedModelError: the model has no attention.
        """
        maps = self.backbone(frames)
        return self.head.select(cells_of(maps)).unflatten(1, maps.shape[2:])


def cells_of(maps: Float[Tensor, "B C h w"]) -> Features:
    """A feature map's cells in reading order."""
    return maps.flatten(2).transpose(1, 2)
