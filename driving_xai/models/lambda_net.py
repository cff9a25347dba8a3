"""Lambda ResNets, and the lambda attention branch network (LABN) that explains itself.

Source: Bello 2021 (lambda ResNet); Iida et al. 2022 (LABN), after Fukui et al. 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.errors import OptionError
from driving_xai.models.lambda_layer import LambdaLayer

EXPANSION = 4
"""A bottleneck puts out so many times its width."""


@dataclass(frozen=True, kw_only=True)
class LambdaConfig:
    """The architecture; the defaults are the lambda ResNet-50's, split as for IDRiD."""

    stages: tuple[int, ...] = (3, 4, 6, 3)
    """Bottlenecks in each stage; from the second on a stage halves the map and doubles the width."""
    width: int = 64
    """Of the first stage's bottlenecks; they put out four times as many channels."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """7 x 7 of stride 2 and a pool, or 3 x 3 of stride 1 for images of a few dozen pixels."""
    stem_channels: int | None = None
    """None is `width`."""
    heads: int = 4
    key_depth: int = 16
    context: int = 23
    """Side in cells of what a position sees around it; odd."""
    split: int = 7
    """Bottlenecks before LABN's attention branch (B); 0 puts the branch after the stem."""
    threshold: float = 0.75
    """Attention at or below it is 0 for LABN's perception branch."""
    branch_channels: int = 10
    """Between LABN's two attention bottlenecks and its attention."""

    def __post_init__(self) -> None:
        if not self.stages or min(self.stages) < 1 or self.split < 0:
            raise ValueError(
                f"stages are {list(self.stages)}, split is {self.split}; expected one or more bottlenecks in "
                "each, and 0 or more"
            )
        if self.width % self.heads or self.context % 2 == 0 or not 0 <= self.threshold < 1:
            raise ValueError(
                f"width is {self.width}, heads {self.heads}, context {self.context}, threshold {self.threshold}; "
                "expected a multiple of heads, an odd context, and 0 up to 1"
            )


class LambdaBottleneck(nn.Module):
    """1 x 1, lambda, 1 x 1, each batch-normalised, around a skip; a stride pools after the lambda layer."""

    def __init__(self, channels: int, width: int, *, stride: int, config: LambdaConfig) -> None:
        super().__init__()
        out = EXPANSION * width
        pool = [nn.AvgPool2d(3, 2, 1)] if stride == 2 else []
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            LambdaLayer(width, heads=config.heads, key_depth=config.key_depth, context=config.context),
            *pool,
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, out, 1, bias=False),
            _silent(nn.BatchNorm2d(out)),
        )
        self.skip = _skip(channels, out, stride)

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B out h2 w2"]:
        return (self.layers(maps) + self.skip(maps)).relu()


class ConvolutionBottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 around a skip, as in the attention branch."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        out = EXPANSION * width
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, out, 1, bias=False),
            _silent(nn.BatchNorm2d(out)),
        )
        self.skip = _skip(channels, out, 1)

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B out h w"]:
        return (self.layers(maps) + self.skip(maps)).relu()


class LambdaResNet(nn.Module):
    """A ResNet whose 3 x 3 convolutions are lambda layers; scores are logits.

    Example:
        >>> config = LambdaConfig(stages=(1, 1), width=8, stem="small", context=5)
        >>> LambdaResNet(config, classes=3)(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 3])
    """

    def __init__(self, config: LambdaConfig, *, classes: int) -> None:
        super().__init__()
        self.stem = _stem(config)
        self.blocks, channels = _blocks(config)
        self.head = nn.Linear(channels, classes)
        self.apply(_initialise)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


class Branches(NamedTuple):
    """What the parts of a LABN say of the same images."""

    scores: Float[Tensor, "B K"]
    """The perception branch's logits: the prediction."""
    branch_scores: Float[Tensor, "B K"]
    """The attention branch's own logits."""
    attention: Float[Tensor, "B h w"]
    """In (0, 1), before the threshold."""


class LambdaAttentionBranchNetwork(nn.Module):
    """A lambda ResNet in two parts, with a branch between them that says which features pass.

    The features h of the first part go to the attention branch, which classifies them itself and
    writes the attention a. The second part classifies a' h, where a' is a above the threshold and 0
    elsewhere: what the map leaves out takes no part in the prediction.

    Source: Iida et al. 2022, section 4.1, eqs. 1 and 2.
    Deviation: the branch has two bottlenecks as in the authors' code, where the paper says one; the
    head pools, where the paper flattens.

    Example:
        >>> config = LambdaConfig(stages=(1, 1), width=8, stem="small", context=5, split=1)
        >>> LambdaAttentionBranchNetwork(config, classes=2).branches(torch.rand(2, 3, 16, 16)).attention.shape
        torch.Size([2, 16, 16])
    """

    def __init__(self, config: LambdaConfig, *, classes: int) -> None:
        super().__init__()
        if config.split > sum(config.stages):
            raise OptionError(
                f"model.split is {config.split}; expected at most {sum(config.stages)}, the bottlenecks there are"
            )
        self.threshold = config.threshold
        blocks, out = _blocks(config)
        self.extract = nn.Sequential(_stem(config), *blocks[: config.split])
        self.perceive = nn.Sequential(*blocks[config.split :])
        features = _features(config)
        hidden = config.branch_channels
        self.branch = nn.Sequential(
            ConvolutionBottleneck(features, features),
            ConvolutionBottleneck(EXPANSION * features, features),
            nn.BatchNorm2d(EXPANSION * features),
            nn.Conv2d(EXPANSION * features, hidden, 1, bias=False),
            nn.ReLU(),
        )
        self.attend = nn.Sequential(
            nn.Conv2d(hidden, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, 1, 1, bias=False),
            nn.BatchNorm2d(1),
            nn.Sigmoid(),
        )
        self.classify = nn.Conv2d(hidden, classes, 1, bias=False)
        self.head = nn.Linear(out, classes)
        self.apply(_initialise)

    def branches(self, images: Float[Tensor, "B 3 H W"]) -> Branches:
        """Scores and attention; training needs all three."""
        features = self.extract(images)
        about = self.branch(features)
        branch_scores, attention = self.classify(about).mean((2, 3)), self.attend(about)
        passed = torch.where(attention > self.threshold, attention, 0.0) * features
        scores = self.head(self.perceive(passed).mean((2, 3)))
        return Branches(scores, branch_scores, attention.squeeze(1))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        return self.branches(images).scores


def _stem_channels(config: LambdaConfig) -> int:
    return config.width if config.stem_channels is None else config.stem_channels


def _features(config: LambdaConfig) -> int:
    """Channels of the features that LABN's branch reads."""
    widths = [config.width * 2**stage for stage, count in enumerate(config.stages) for _ in range(count)]
    return EXPANSION * widths[config.split - 1] if config.split else _stem_channels(config)


def _stem(config: LambdaConfig) -> nn.Sequential:
    channels = _stem_channels(config)
    if config.stem == "small":
        return nn.Sequential(nn.Conv2d(3, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(3, channels, 7, 2, 3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    )


def _blocks(config: LambdaConfig) -> tuple[nn.Sequential, int]:
    """All bottlenecks in a row, and how many channels the last one puts out."""
    blocks: list[nn.Module] = []
    channels = _stem_channels(config)
    for stage, count in enumerate(config.stages):
        width = config.width * 2**stage
        for place in range(count):
            stride = 2 if stage > 0 and place == 0 else 1
            blocks.append(LambdaBottleneck(channels, width, stride=stride, config=config))
            channels = EXPANSION * width
    return nn.Sequential(*blocks), channels


def _skip(channels: int, out: int, stride: int) -> nn.Module:
    if channels == out and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


def _silent(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """A bottleneck's last normalisation starts at 0, so that a block starts as its skip."""
    nn.init.zeros_(norm.weight)
    return norm


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
