"""Backbones by their timm names, at any input size, and where their weights start from.

Vision transformers with a class token, and convolutional networks that end in feature maps.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_prep.documents import read_json
from data_prep.values import build
from driving_xai.errors import CheckpointError, UnsupportedModelError
from driving_xai.models import weights as weights_files
from driving_xai.models.feature_maps import last_feature_map
from driving_xai.models.forward_trace import removed_after
from driving_xai.models.modes import evaluating
from driving_xai.models.pretrained import timm_network
from driving_xai.models.weights import Weights, first_line

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB in [0, 1]; what DINO, DINOv2 and SNNA standardise with."""

_HEADS = ("head.", "fc.", "classifier.")
"""Classifiers of vision transformers, ResNets and EfficientNets: no part of a backbone."""
_STANDARDISATION = ("mean", "std")
"""What an action model keeps beside its backbone."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """An architecture: a timm name, and what to change about it."""

    backbone: str = "vit_small_patch8_224"
    """A timm name: vit_small_patch16_224, resnet50, ... Where timm fetches the weights, its tag says which:
    DINO's are vit_small_patch8_224.dino and vit_small_patch16_224.dino; see `fetched_name`."""
    image_size: tuple[int, ...] | None = None
    """Height and width in px for which positional embeddings are kept, interpolated to any other (timm's
    antialiased bicubic, where DINO's own is not antialiased); None as timm has it (224 x 224 for most)."""
    patch_px: int | None = None
    embed_dim: int | None = None
    """Width of a transformer's tokens; None of these three as the name says."""
    depth: int | None = None
    """Blocks of a transformer."""
    heads: int | None = None
    output_stride: int | None = None
    """Pixels a cell of a ResNet's feature maps: 8, 16 or 32; None is 32. Smaller dilates the last stages."""

    def __post_init__(self) -> None:
        for name in ("patch_px", "embed_dim", "depth", "heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        size = self.image_size
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(f"image_size is {list(size)}; expected a height and a width in px")
        if self.output_stride not in (None, 8, 16, 32):
            raise ValueError(f"output_stride is {self.output_stride}; expected 8, 16 or 32")


def build_backbone(config: BackboneConfig, *, drop_path: float = 0.0, pretrained: bool = False) -> Any:
    """timm's module of the configuration, without a classifier; timm's models share no narrower type.

    Args:
        drop_path: share of residual branches left out in training, growing with depth.
        pretrained: fetch timm's own weights of the name, from its cache or the network.

    Raises:
        UnsupportedModelError: no such name, or one that ends in neither a class token nor feature maps;
            or `pretrained`, and timm has no such weights.
        CheckpointError: `pretrained`, and the weights are neither cached nor reachable.
    """
    _check_name(config.backbone)
    fetched = fetched_name(config.backbone) if pretrained else None
    keywords = _keywords(config, drop_path)
    try:
        trunk = _made(config.backbone, pretrained=pretrained, **keywords)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"timm's weights {fetched} are neither cached nor reachable; give a local file, or "
            "take random weights"
        ) from error
    # timm has a thousand networks, whose constructors refuse in as many ways.
    except Exception as error:
        given = ", ".join(_chosen(config))
        cure = f"with {given} ({first_line(error)}); change these" if given else f"({first_line(error)})"
        raise UnsupportedModelError(f"backbone {config.backbone} cannot be built {cure}") from error
    _check(config, trunk)
    return trunk


def _made(name: str, *, global_pool: str | None = None, pretrained: bool, **keywords: Any) -> Any:
    """timm's module, without its pooling where the pooling can be left out; `forward_features` has none."""
    import timm

    create = timm_network if pretrained else timm.create_model
    if global_pool is not None:
        try:
            return create(name, num_classes=0, global_pool=global_pool, **keywords)
        except (AssertionError, TypeError, ValueError) as error:
            # Some refuse; what else is wrong is wrong again below.
            if isinstance(error, CheckpointError):
                raise
    return create(name, num_classes=0, **keywords)


def fetched_name(backbone: str) -> str:
    """timm's full name of the weights that it fetches for a name, which need not have a tag.

    Example:
        >>> fetched_name("vit_small_patch8_224"), fetched_name("vit_small_patch16_224")
        ('vit_small_patch8_224.dino', 'vit_small_patch16_224.augreg_in21k_ft_in1k')

    Raises:
        UnsupportedModelError: timm knows no such name, or has no such weights.
    """
    import timm

    _check_name(backbone)
    try:
        found = timm.get_pretrained_cfg(backbone)
    except RuntimeError:  # An unknown tag.
        found = None
    if found is None or not found.has_weights:
        others = ", ".join(other_weights(backbone)) or "none of this network"
        raise UnsupportedModelError(f"timm has no weights {backbone}; it has {others}")
    return f"{found.architecture}.{found.tag}" if found.tag else str(found.architecture)


def other_weights(backbone: str) -> list[str]:
    """timm's full names of the weights of an architecture, less the name itself."""
    import timm

    architecture = backbone.partition(".")[0]
    return [name for name in timm.list_pretrained(f"{architecture}.*") if name != backbone]


def _check_name(backbone: str) -> None:
    import timm

    known = timm.list_models()
    if backbone.partition(".")[0] not in known:
        near = difflib.get_close_matches(backbone, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "timm.list_models() has the names"
        raise UnsupportedModelError(f"backbone {backbone!r} is unknown to timm; {hint}")


def is_transformer(trunk: nn.Module) -> bool:
    """Whether a backbone is one of timm's plain vision transformers."""
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(trunk, VisionTransformer)


def _keywords(config: BackboneConfig, drop_path: float) -> dict[str, Any]:
    """timm's keywords; those left at None stay out, since no two families know the same ones."""
    transformer = _makes_transformers(config.backbone)
    named = {
        **_chosen(config),
        "drop_path_rate": drop_path or None,
        "dynamic_img_size": True if transformer else None,
        "global_pool": None if transformer else "",
    }
    return {name: value for name, value in named.items() if value is not None}


def _chosen(config: BackboneConfig) -> dict[str, Any]:
    """What the configuration changes about an architecture, by timm's keywords."""
    named = {
        "img_size": config.image_size,
        "patch_size": config.patch_px,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.heads,
        "output_stride": config.output_stride,
    }
    return {name: value for name, value in named.items() if value is not None}


def _makes_transformers(backbone: str) -> bool:
    """Whether timm defines the name where it defines plain vision transformers.

    The type decides and not the name: repvit, fastvit, mobilevit and efficientvit are convolutional.
    """
    import timm
    from timm.models.vision_transformer import VisionTransformer

    module = sys.modules[timm.model_entrypoint(backbone.partition(".")[0]).__module__]
    return any(
        isinstance(each, type) and issubclass(each, VisionTransformer) for each in vars(module).values()
    )


def _check(config: BackboneConfig, trunk: Any) -> None:
    if is_transformer(trunk):
        if not trunk.has_class_token:
            raise UnsupportedModelError(
                f"backbone {config.backbone} has no class token to read; use a ViT of DINO, DINOv2 or DeiT"
            )
        return
    found: object = None
    reason = ""
    for size in _probe_sizes(config, trunk):
        try:
            with torch.no_grad(), evaluating(trunk):
                found = trunk.forward_features(torch.zeros(1, 3, *size))
            break
        # What networks raise at frames that they are not made for is of any type.
        except Exception as error:
            reason = f" (frames of {size[0]} x {size[1]} px: {first_line(error)})"
    is_grid = isinstance(found, Tensor) and found.dim() == 4 and found.shape[1] == trunk.num_features
    if not is_grid:
        raise UnsupportedModelError(
            f"backbone {config.backbone} ends neither in a class token nor in feature maps [B, C, h, w]"
            f"{'' if isinstance(found, Tensor) else reason}; use a ViT or a convolutional network"
        )


def _probe_sizes(config: BackboneConfig, trunk: Any) -> list[tuple[int, ...]]:
    """Sizes of frames to try, the cheapest first; a network of a fixed size takes one only."""
    own = fixed_size(config, trunk)
    return [own] if own else [(64, 64), tuple(trunk.pretrained_cfg["input_size"][1:])]


def fixed_size(config: BackboneConfig, trunk: Any) -> tuple[int, ...] | None:
    """Height and width of the only frames that a convolutional backbone takes; None of any other."""
    if is_transformer(trunk) or not trunk.pretrained_cfg.get("fixed_input_size"):
        return None
    return config.image_size or tuple(trunk.pretrained_cfg["input_size"][1:])


def feature_layer(config: BackboneConfig, trunk: Any) -> str | None:
    """The name of the layer that puts out the last feature maps; None of a transformer.

    That is the one timm names, or where it names none the one that is found.
    """
    if is_transformer(trunk):
        return None
    frames = torch.zeros(1, 3, *_probe_sizes(config, trunk)[-1])
    modules = dict(trunk.named_modules())
    stages = getattr(trunk, "feature_info", None) or [{}]
    named = modules.get(str(stages[-1].get("module")))
    if named is not None and _puts_out(named, trunk, frames) == stages[-1].get("num_chs"):
        return str(stages[-1]["module"])
    layer = last_feature_map(_Features(trunk), frames)
    return next(name for name, module in modules.items() if module is layer)


class _Features(nn.Module):
    """A backbone as it is used here, without whatever lies behind its features."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, frames: Tensor) -> Tensor:
        return self.trunk.forward_features(frames)


def _puts_out(layer: nn.Module, trunk: Any, frames: Tensor) -> int | None:
    """The channels of a layer's output; None where it is no feature map [B, C, h, w]."""
    found: list[Any] = []
    handle = layer.register_forward_hook(lambda _layer, _inputs, output: found.append(output))
    with torch.no_grad(), evaluating(trunk), removed_after([handle]):
        trunk.forward_features(frames)
    maps = found[0] if len(found) == 1 and isinstance(found[0], Tensor) else None
    return maps.shape[1] if maps is not None and maps.dim() == 4 else None


def load_backbone(trunk: Any, path: Path) -> Weights:
    """Loads weights into a backbone, strictly; positional embeddings of another grid are interpolated.

    Any wrapper is seen through, see `weights.find`: DINO's own checkpoints (teacher before student), DINOv2's,
    plain state dicts, .safetensors files, and directories that `train dino` or `train actions` wrote.
    Heads are left out. No code of a file is run.

    Args:
        trunk: what `build_backbone` made; changed in place.
        path: a file, or a directory with model.safetensors.

    Raises:
        CheckpointError: it cannot be read, or is of another architecture or patch size.
    """
    found = weights_files.find(path, trunk)
    if is_transformer(trunk):
        found = _in_timms_names(found, trunk)
    weights_files.require_fit(
        found,
        trunk,
        name=trunk.pretrained_cfg.get("architecture", type(trunk).__name__),
        ignored=(*_HEADS, *_STANDARDISATION),
        cure="set model.backbone and its size to the file's",
    )
    weights_files.put(found, trunk)
    return found


def _in_timms_names(found: Weights, trunk: Any) -> Weights:
    """Names of the original repositories in timm's, and positions on the grid of the trunk."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    _check_patches(trunk, found.tensors, found.path)
    ignored = (*_HEADS, *_STANDARDISATION)
    unknown = {name: value for name, value in found.unknown.items() if not name.startswith(ignored)}
    try:
        named = checkpoint_filter_fn({**found.tensors, **unknown}, trunk)
    except (RuntimeError, KeyError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{found.path} is of another architecture ({first_line(error)}); set model.backbone to the file's"
        ) from error
    wanted = trunk.state_dict().keys()
    return replace(
        found,
        tensors={name: value for name, value in named.items() if name in wanted},
        unknown={name: value for name, value in named.items() if name not in wanted},
    )


def saved_backbone(path: Path) -> BackboneConfig | None:
    """The architecture a directory of `train dino` or `train actions` was made with; None of a bare file.

    Raises:
        CheckpointError: the directory is no such checkpoint.
    """
    if not path.is_dir():
        return None
    try:
        section = read_json(path / "config.json")["model"]
        return build(BackboneConfig, {field.name: section[field.name] for field in fields(BackboneConfig)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint of a backbone; give a file, or a directory of `train dino` or `train actions`"
        ) from error


def architecture_of(config: BackboneConfig) -> BackboneConfig:
    """The part of a model's configuration that describes its backbone."""
    values = asdict(config)
    return BackboneConfig(**{field.name: values[field.name] for field in fields(BackboneConfig)})


def _check_patches(trunk: Any, weights: Mapping[str, Tensor], path: Path) -> None:
    """timm would resample the patches of another size in silence."""
    found = weights.get("patch_embed.proj.weight")
    if found is None or found.dim() != 4:
        raise CheckpointError(f"{path} holds no patch embedding; expected weights of a vision transformer")
    wanted = trunk.patch_embed.patch_size
    if tuple(found.shape[-2:]) != tuple(wanted):
        raise CheckpointError(
            f"{path} has patches of {found.shape[-1]} px, this model of {wanted[-1]}; "
            "set model.backbone to a name of the file's patch size, or model.patch_px"
        )
