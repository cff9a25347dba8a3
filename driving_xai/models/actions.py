"""Which driving actions are possible: one logit an action, from a frame.

Source: Zhu et al. 2024, section 4; the linear head on several blocks is DINO's linear evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.errors import CheckpointError, UnsupportedModelError
from driving_xai.models.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BackboneConfig,
    build_backbone,
    feature_layer,
    fixed_size,
    is_transformer,
)
from driving_xai.models.weights import file_of, first_line, read
from driving_xai.types import Cells, FeatureMap, Frames, Outputs, Scores

ACTIONS = ("forward", "stop", "left", "right")
"""The order of BDD-OIA; `stop` is its "stop/slow down", `left` and `right` are turns and lane changes."""


@dataclass(frozen=True, kw_only=True)
class ActionConfig(BackboneConfig):
    """The architecture. Defaults are the paper's."""

    actions: tuple[str, ...] = ACTIONS
    """Names of the outputs: label columns of the shards."""
    blocks: int = 4
    """Last blocks of a transformer whose class tokens the head reads; a convolutional network has one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks < 1 or not self.actions or len(set(self.actions)) < len(self.actions):
            raise ValueError(
                f"blocks is {self.blocks}, actions {list(self.actions)}; "
                "expected 1 or more, and at least one name, none twice"
            )


class ActionModel(nn.Module):
    """A backbone and one linear layer: a `types.FrameModel` of several labels.

    A transformer's head reads the class tokens of the last blocks, each after the final normalisation; a
    convolutional network's reads the mean of the last feature maps. Frames may have any size of at least
    one patch; what lies beyond the last whole patch is not seen.

    Attributes:
        vit: timm's module, or None.
        cnn: timm's module, or None.

    Source: Zhu et al. 2024; the authors' head, Linear(4 x 384 -> 4), fits this one's defaults.

    Example:
        >>> config = ActionConfig(backbone="vit_tiny_patch16_224", depth=2, blocks=2, image_size=(32, 64))
        >>> ActionModel(config).eval()(torch.rand(1, 3, 32, 64)).shape
        torch.Size([1, 4])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ActionConfig, *, pretrained: bool = False) -> None:
        """`pretrained` fetches timm's weights for the backbone; see `build_backbone`."""
        super().__init__()
        self.config = config
        trunk = build_backbone(config, pretrained=pretrained)
        transformer = is_transformer(trunk)
        self.vit: Any = trunk if transformer else None
        self.cnn: Any = None if transformer else trunk
        if transformer and len(trunk.blocks) < config.blocks:
            raise UnsupportedModelError(
                f"the head reads {config.blocks} blocks and {config.backbone} has {len(trunk.blocks)}; set blocks"
            )
        # A name, because a module kept twice would be saved twice.
        self._cam = feature_layer(config, trunk)
        self._one_size = fixed_size(config, trunk)
        given = trunk.pretrained_cfg if pretrained else {}
        self.register_buffer("mean", torch.tensor(given.get("mean", IMAGENET_MEAN)).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(given.get("std", IMAGENET_STD)).view(3, 1, 1))
        self.head = nn.Linear(trunk.num_features * (config.blocks if transformer else 1), len(config.actions))
        # DINO's linear evaluation starts so; the bias at 0 makes every action a coin's toss.
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    @property
    def outputs(self) -> Outputs:
        return Outputs(kind="multilabel", names=tuple(self.config.actions))

    @property
    def backbone(self) -> Any:
        """`vit` or `cnn`, whichever there is."""
        return self.cnn if self.vit is None else self.vit

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height and width of the frames that it was made for, in pixels; None where none is named."""
        if self.config.image_size is None:
            return None
        height, width = self.config.image_size
        return height, width

    @property
    def feature_map(self) -> FeatureMap | None:
        """The end of a convolutional backbone; None of a transformer."""
        if self._cam is None:
            return None
        # A ResNet pads every odd kernel by half of it, so that cell 0 stays centred on pixel 0.
        residual = type(self.cnn).__name__ == "ResNet"
        cells = Cells(0.0, float(self.cnn.feature_info[-1]["reduction"])) if residual else None
        return FeatureMap(layer=self.cnn.get_submodule(self._cam), cells=cells)

    def forward(self, frames: Frames) -> Scores:
        """The logit of each action; they are independent, so several may be possible."""
        return self.head(self.features(frames))

    def features(self, frames: Frames) -> Float[Tensor, "B width"]:
        """What the head reads.

        Raises:
            UnsupportedModelError: the frames are smaller than a patch.
        """
        self._check_size(frames)
        if self.vit is None:
            return self._maps(frames).mean((2, 3))
        height, width = (
            side // patch * patch for side, patch in zip(frames.shape[-2:], self._patch, strict=True)
        )
        taken = self.vit.forward_intermediates(
            self._standardised(frames[..., :height, :width]),
            indices=self.config.blocks,
            norm=True,
            return_prefix_tokens=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return torch.cat([prefix[:, 0] for _, prefix in taken], dim=1)

    def _maps(self, frames: Frames) -> Float[Tensor, "B width h w"]:
        try:
            return self.cnn.forward_features(self._standardised(frames))
        except RuntimeError as error:
            height, width = frames.shape[-2:]
            if min(height, width) >= min(self.cnn.pretrained_cfg["input_size"][1:]):
                raise
            raise UnsupportedModelError(
                f"frames are {height} x {width} px, too small for {self.config.backbone} ({first_line(error)}); "
                "give larger frames"
            ) from error

    def _standardised(self, frames: Frames) -> Frames:
        return (frames - self.mean) / self.std

    @property
    def _patch(self) -> tuple[int, int]:
        return self.vit.patch_embed.patch_size

    def _check_size(self, frames: Frames) -> None:
        if self._one_size is not None and tuple(frames.shape[-2:]) != tuple(self._one_size):
            (height, width), (rows, columns) = frames.shape[-2:], self._one_size
            raise UnsupportedModelError(
                f"frames are {height} x {width} px and this {self.config.backbone} takes {rows} x {columns} px only; "
                "set model.image_size to the frames', or use another backbone"
            )
        smallest = 32 if self.vit is None else max(self._patch)
        if min(frames.shape[-2:]) < smallest:
            height, width = frames.shape[-2:]
            unit = "cell" if self.vit is None else "patch"
            raise UnsupportedModelError(
                f"frames are {height} x {width} px and a {unit} of {self.config.backbone} is {smallest} px; "
                "give larger frames"
            )


def load_head(model: ActionModel, path: Path) -> None:
    """Loads the head alone, from SNNA's linear checkpoint or a file with `weight` and `bias` of a head.

    Raises:
        CheckpointError: it cannot be read, or is a head of another width or number of actions.
    """
    path, _ = file_of(path)
    heads: dict[str, dict[str, Tensor]] = {}
    for name, value in read(path).items():
        owner, _, own = name.rpartition(".")
        if owner.rpartition(".")[2] in _HEAD_OWNERS and own in ("weight", "bias"):
            heads.setdefault(owner, {})[own] = value
    wanted = {name: tuple(value.shape) for name, value in model.head.state_dict().items()}
    shapes = {
        owner: {name: tuple(value.shape) for name, value in head.items()} for owner, head in heads.items()
    }
    fitting = [owner for owner, found in shapes.items() if found == wanted]
    if not fitting:
        raise CheckpointError(
            f"{path} holds heads of {shapes or 'no known layout'}; this model's is {wanted}; "
            "set model.backbone or model.blocks"
        )
    model.head.load_state_dict(heads[fitting[0]])


_HEAD_OWNERS = ("", "head", "linear", "fc", "classifier", "module", "state_dict", "model")
"""What a linear head is called, or the wrapper of a file that holds nothing else."""
