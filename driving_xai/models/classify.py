"""Image classifiers of one class an image: any network of timm's, and this project's own."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from driving_xai.models.channel_spatial import ChannelSpatialAttention
from driving_xai.models.feature_maps import cell_centres, last_feature_map, linear_head
from driving_xai.models.lambda_layer import LambdaLayer
from driving_xai.models.lambda_net import LambdaAttentionBranchNetwork, LambdaConfig, LambdaResNet
from driving_xai.models.modes import evaluating
from driving_xai.models.weights import find, put, require_fit
from driving_xai.types import Cells, FeatureMap, Frames, Outputs, OwnMap, Scores

MOST_PIXELS = 2**22
"""Of a frame; some networks take gigabytes for a larger one."""
_CBAM = "cbam-"
_LAMBDA_ATTENTION_LAYER = 1
"""The second lambda layer, whose attention Iida et al.'s code takes."""
_REFUSALS = (AssertionError, RuntimeError, ValueError, IndexError, ZeroDivisionError)
"""What networks raise at frames of a size that they are not made for."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(LambdaConfig):
    """The architecture. The fields of `LambdaConfig` are of lambda-resnet and labn only."""

    classes: tuple[str, ...] = ()
    """Names of the outputs; training takes them from the shards."""
    network: str = "resnet18"
    """small-cnn, lambda-resnet, labn, or any timm name; cbam- before small-cnn or a ResNet of timm's."""
    image_size: tuple[int, ...] = (224, 224)
    """Height and width of the frames it is made for."""
    normalisation: Literal["images", "none"] = "images"
    """By the training images' mean and deviation, with `weights` by those the weights were made with; `none` leaves
    pixels in [0, 1], as An and Joe write."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Of small-cnn's convolutions."""
    kernel: int = 3
    pooled: int = 2
    """How many of small-cnn's convolutions a 2 x 2 maximum follows."""
    reduction: int = 16
    """Of CBAM's hidden layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.classes)) != len(self.classes) or len(self.classes) == 1:
            raise ValueError(f"classes are {list(self.classes)}; expected two names or more, none twice")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size is {list(self.image_size)}; expected a height and a width in px")
        if math.prod(self.image_size) > MOST_PIXELS:
            raise ValueError(
                f"image_size is {list(self.image_size)}; expected at most {MOST_PIXELS:,} pixels: the network is run on one"
            )
        if self.network == "labn" and self.split > sum(self.stages):
            raise ValueError(
                f"split is {self.split}; expected at most {sum(self.stages)}, the bottlenecks that stages "
                f"{list(self.stages)} make"
            )


class Classifier(nn.Module):
    """A network with its normalisation inside: a `types.FrameModel` of one class.

    Scores are logits; frames are RGB in [0, 1].

    Example:
        >>> config = ClassifierConfig(classes=("cat", "dog"), network="small-cnn", image_size=(32, 32))
        >>> model = Classifier(config).eval()
        >>> model(torch.rand(2, 3, 32, 32)).shape, model.feature_map.cells
        (torch.Size([2, 2]), Cells(first_px=1.5, stride_px=4.0, frame_px=None, offset_px=(0.0, 0.0)))
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ClassifierConfig) -> None:
        """Runs the network once, on a frame of noise.

        Raises:
            UnsupportedModelError: no network has that name, or it takes no frames of that size.
        """
        super().__init__()
        self.config = config
        self.network = build_network(config, len(config.classes))
        # What timm's weights of that name were trained with.
        given = getattr(self.network, "pretrained_cfg", {})
        if config.normalisation == "none":
            given = {**given, "mean": (0.0,) * 3, "std": (1.0,) * 3}
        self.register_buffer("mean", torch.tensor(given.get("mean", IMAGENET_MEAN)).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(given.get("std", IMAGENET_STD)).view(3, 1, 1))
        self._one_size = bool(given.get("fixed_input_size"))
        # Names, because a module kept twice would be saved twice.
        self._layer, self._head, self._cells = _look(self.network, config)
        self._own_cells = {name: self._centres(layer) for name, layer in self._own_layers().items()}

    @property
    def outputs(self) -> Outputs:
        return Outputs(kind="multiclass", names=self.config.classes)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the frames that it was made for, in pixels."""
        height, width = self.config.image_size
        return height, width

    @property
    def feature_map(self) -> FeatureMap | None:
        """The last feature map; None of a network whose features are tokens."""
        if self._layer is None:
            return None
        head = None if self._head is None else self.network.get_submodule(self._head)
        assert head is None or isinstance(head, nn.Linear)
        return FeatureMap(layer=self.network.get_submodule(self._layer), cells=self._cells, head=head)

    @property
    def own_maps(self) -> Mapping[str, OwnMap]:
        """Explanations that the network writes itself, by their method's name."""
        return {
            name: OwnMap(read="layer", layer=layer, cells=self._own_cells[name])
            for name, layer in self._own_layers().items()
        }

    def _own_layers(self) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        # What stands behind LABN's gate has seen its attention: the layer is the last before it, if not the second.
        parts = [self.network]
        if isinstance(self.network, LambdaAttentionBranchNetwork):
            parts = [self.network.extract, self.network]
        for part in parts:
            layers = [module for module in part.modules() if isinstance(module, LambdaLayer)]
            if layers:
                found["lambda-attention"] = layers[min(_LAMBDA_ATTENTION_LAYER, len(layers) - 1)].content
                break
        if isinstance(self.network, LambdaAttentionBranchNetwork):
            found["labn"] = self.network.attend
        return found

    def forward(self, frames: Frames) -> Scores:
        """The logit of each class.

        Raises:
            UnsupportedModelError: the network is built for one size of frames, and these have another.
        """
        size = tuple(frames.shape[2:])
        if self._one_size and size != tuple(self.config.image_size):
            (height, width), (rows, columns) = size, self.config.image_size
            raise UnsupportedModelError(
                f"frames are {height} x {width} px and this {self.config.network} takes {rows} x {columns} px only; "
                "resize them"
            )
        return self.network(self.normalised(frames))

    def normalised(self, frames: Frames) -> Tensor:
        """What the network sees."""
        return (frames - self.mean) / self.std

    def _centres(self, layer: nn.Module) -> Cells | None:
        return cell_centres(self.network, _probe(self.config).to(self.mean), layer)


def build_network(config: ClassifierConfig, classes: int) -> nn.Module:
    """The network alone, with random weights and so many outputs.

    Raises:
        UnsupportedModelError: no network has that name, or it cannot be built for frames of that size.
    """
    name = config.network
    if name in _NETWORKS:
        return _NETWORKS[name](config, classes)
    if name.startswith(_CBAM):
        return _with_attention(_timm(name.removeprefix(_CBAM), config, classes), config)
    return _timm(name, config, classes)


def load_weights(model: Classifier, path: Path) -> None:
    """Loads a local file into a classifier, strictly; a head for other classes is left as it is drawn.

    The file is read without running code, and any wrapper is seen through (`weights.find`). All of it must
    fit the network built for as many classes as the file has; only then is a last layer of another size
    put aside.

    A LABN also takes a lambda ResNet of the same stages and width: its stem and first bottlenecks become the feature
    extractor, the others the perception branch, and the attention branch stays as it is drawn.

    Args:
        path: .safetensors or a PyTorch file, with timm's names (or this project's), or a checkpoint's folder.

    Raises:
        CheckpointError: it cannot be read or is of another network.

    Source: Iida et al. 2022, section 5.1, whose LABN starts from a pretrained network.
    """
    if isinstance(model.network, LambdaAttentionBranchNetwork) and _holds_lambda_resnet(path, model.config):
        _begin_with_lambda_resnet(model.network, path, model.config)
        return
    found = find(path, model.network)
    head = next((name for name, _ in _linear_layers(model.network)), None)
    last = None if head is None else found.tensors.get(f"{head}.weight")
    classes = len(model.config.classes)
    whole = model.network
    if last is not None and last.dim() and len(last) != classes:
        whole = build_network(model.config, len(last))
    require_fit(found, whole, name=model.config.network)
    own = model.network.state_dict()
    # Of another number of classes only what makes the scores has other shapes.
    found = replace(
        found, tensors={**own, **{k: v for k, v in found.tensors.items() if v.shape == own[k].shape}}
    )
    put(found, model.network)


def _holds_lambda_resnet(path: Path, config: ClassifierConfig) -> bool:
    """Whether a file has bottlenecks in one row, where a LABN has them in two parts."""
    return "blocks." in "".join(name for name in find(path, LambdaResNet(config, classes=2)).tensors)


def _begin_with_lambda_resnet(
    network: LambdaAttentionBranchNetwork, path: Path, config: ClassifierConfig
) -> None:
    found = find(path, LambdaResNet(config, classes=2))
    head = found.tensors.get("head.weight")
    plain = LambdaResNet(config, classes=2 if head is None else len(head))
    require_fit(found, plain, name=f"lambda-resnet of stages {list(config.stages)}, width {config.width}")
    put(found, plain)
    network.extract.load_state_dict(nn.Sequential(plain.stem, *plain.blocks[: config.split]).state_dict())
    network.perceive.load_state_dict(nn.Sequential(*plain.blocks[config.split :]).state_dict())
    if plain.head.weight.shape == network.head.weight.shape:
        network.head.load_state_dict(plain.head.state_dict())


def _small(config: ClassifierConfig, classes: int, *, attended: bool = False) -> nn.Module:
    """Convolutions that keep the size, each batch-normalised, the first ones also pooled.

    `attended` puts channel and spatial attention (CBAM) after each of them.
    """
    layers: list[nn.Module] = []
    for place, (before, width) in enumerate(pairwise((3, *config.channels))):
        layers.append(nn.Conv2d(before, width, config.kernel, padding=config.kernel // 2, bias=False))
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        layers += [ChannelSpatialAttention(width, reduction=config.reduction)] if attended else []
        layers += [nn.MaxPool2d(2)] if place < config.pooled else []
    head = nn.Linear(config.channels[-1], classes)
    return nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


_NETWORKS: Mapping[str, Callable[[ClassifierConfig, int], nn.Module]] = {
    "small-cnn": _small,
    f"{_CBAM}small-cnn": partial(_small, attended=True),
    "lambda-resnet": lambda config, classes: LambdaResNet(config, classes=classes),
    "labn": lambda config, classes: LambdaAttentionBranchNetwork(config, classes=classes),
}


def _timm(name: str, config: ClassifierConfig, classes: int) -> nn.Module:
    """timm's network; one that takes a single size of frames is built for the configuration's."""
    import timm

    known = timm.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, [*_NETWORKS, *known], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "timm.list_models() has the names"
        raise UnsupportedModelError(
            f"network {name!r} is neither one of {', '.join(_NETWORKS)} nor one of timm's; {hint}"
        )
    network: Any = timm.create_model(name, pretrained=False, num_classes=classes)
    # Networks that take any size know no img_size.
    if not network.pretrained_cfg.get("fixed_input_size") or _refusal(network, config) is None:
        return network
    try:
        return timm.create_model(name, pretrained=False, num_classes=classes, img_size=config.image_size)
    except (TypeError, *_REFUSALS) as error:
        raise _unsupported(config, error) from error


def _with_attention(network: nn.Module, config: ClassifierConfig) -> nn.Module:
    """A ResNet whose residual branches end in channel and spatial attention (CBAM)."""
    from timm.models.resnet import BasicBlock, Bottleneck

    blocks = [module for module in network.modules() if isinstance(module, BasicBlock | Bottleneck)]
    if not blocks:
        raise UnsupportedModelError(
            f"network {config.network!r} has no residual blocks; put {_CBAM} before a ResNet, as in cbam-resnet50"
        )
    for block in blocks:
        last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        assert isinstance(last, nn.BatchNorm2d)
        # timm leaves this place, after the last normalisation and before the sum, for such modules.
        block.se = ChannelSpatialAttention(last.num_features, reduction=config.reduction)
    return network


def _linear_layers(network: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The last one first."""
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return found[::-1]


def _probe(config: ClassifierConfig) -> Tensor:
    """A frame of noise: one of zeros could not tell a pooled head from another."""
    return torch.rand(1, 3, *config.image_size, generator=torch.Generator().manual_seed(0))


def _refusal(network: nn.Module, config: ClassifierConfig) -> Exception | None:
    """What the network raises at a frame of the configuration's size; None where it takes it."""
    try:
        with torch.no_grad(), evaluating(network):
            network(_probe(config))
    except _REFUSALS as error:
        return error
    return None


def _unsupported(config: ClassifierConfig, error: Exception) -> UnsupportedModelError:
    height, width = config.image_size
    reason = " ".join(str(error).split())[:160]
    return UnsupportedModelError(
        f"network {config.network} takes no frames of {height} x {width} px ({reason}); prepare images of "
        "another size, or choose another network"
    )


def _has_maps(network: nn.Module, frames: Frames) -> bool:
    """Whether the features that the head reads are maps [B, C, h, w]; timm says where channels come last."""
    features = getattr(network, "forward_features", None)
    if features is None:
        return True
    with torch.no_grad(), evaluating(network):
        found = features(frames)
    # Some transformers give a list, one for each of their branches.
    return isinstance(found, Tensor) and found.dim() == 4 and getattr(network, "output_fmt", "NCHW") == "NCHW"


def _look(network: nn.Module, config: ClassifierConfig) -> tuple[str | None, str | None, Cells | None]:
    """The names of the layer to weight and of a pooled linear head, and where the layer's cells lie."""
    if (refusal := _refusal(network, config)) is not None:
        raise _unsupported(config, refusal) from refusal
    frames = _probe(config)
    if not _has_maps(network, frames):
        return None, None, None
    names = {id(module): name for name, module in network.named_modules()}
    layer = last_feature_map(network, frames)
    head = linear_head(network, frames, layer)
    return (
        names[id(layer)],
        None if head is None else names[id(head)],
        cell_centres(network, frames, layer),
    )
