"""Shapes, protocols and capabilities shared by models, explainers and metrics. No logic lives here.

Frames are RGB in [0, 1]; a model converts colour and normalises inside itself. Explainers and metrics
see one instant: no time axis. A recurrent model hands out that view with `at(state)`.

What an explainer needs of a network beyond its scores is a capability, declared by the protocols
`HasFeatureMap`, `HasVisionTransformer`, `WritesMaps` and `HasEncoder`. A plain torchvision or timm network
declares none; what can be found in it is found, see `models.capabilities`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

Frames = Float[Tensor, "B 3 H W"]
"""RGB in [0, 1]."""
Scores = Float[Tensor, "B K"]
"""Steering: inverse turning radius (1/m, positive to the left), K = 1. Actions and classes: logits."""
Saliency = Float[Tensor, "B H W"]
"""On the frame grid, finite; signed or not as the method says; never normalised."""
Attention = Float[Tensor, "B h w"]
"""A model's own attention on its feature grid; sums to one over the grid."""
Target = Callable[[Scores], Float[Tensor, " B"]]
"""Scores to the one scalar for which a frame is explained or measured."""
FrameModel = Callable[[Frames], Scores]
"""A model of one instant: each frame is scored by itself. Any `nn.Module` of that signature is one."""

Kind = Literal["regression", "multilabel", "multiclass"]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What the columns of a model's scores mean."""

    kind: Kind
    names: tuple[str, ...]
    unit: str | None = None


@runtime_checkable
class HasOutputs(Protocol):
    """A model that says what its scores mean."""

    @property
    def outputs(self) -> Outputs: ...


@runtime_checkable
class HasInputSize(Protocol):
    """A network that says which height and width of frames, in pixels, it was made for; None of one for any."""

    @property
    def input_size(self) -> tuple[int, int] | None: ...


@runtime_checkable
class View(Protocol):
    """A model that calls another module: a drive's model at one instant, a loaded checkpoint.

    Layers are found in, and hooks registered on, `network`.
    """

    @property
    def network(self) -> nn.Module: ...


@runtime_checkable
class ConvertsPixels(Protocol):
    """A frame model that begins with a conversion of each pixel by itself: of its colour, its normalisation.

    An edited frame is made of the pixels of two pictures. Of these the conversion is then asked, and not of each
    edited frame; scores are the same to the last bit.
    """

    def converted(self, frames: Frames) -> Float[Tensor, "N C H W"]:
        """Each pixel's conversion depends on this pixel alone."""
        ...

    def of_converted(self, converted: Float[Tensor, "N C H W"]) -> Scores:
        """The scores of converted frames; `of_converted(converted(frames))` are those of a call with the frames."""
        ...


@runtime_checkable
class AttentiveFrameModel(Protocol):
    """A frame model that writes its own attention map."""

    def __call__(self, frames: Frames) -> Scores: ...

    def attention(self, frames: Frames) -> Attention: ...


@runtime_checkable
class SelectiveFrameModel(Protocol):
    """A frame model whose prediction rests on a selection of cells of its feature grid."""

    def __call__(self, frames: Frames) -> Scores: ...

    def selection(self, frames: Frames) -> Float[Tensor, "B h w"]:
        """Positive on the selected cells, zero elsewhere."""
        ...


State = TypeVar("State")


@runtime_checkable
class RecurrentModel(Protocol[State]):
    """A model of a drive: one step a frame, carrying a state.

    The state is any nest of tensors in tuples, lists or dictionaries, each with the drives first. A model
    without memory has the state `()`.
    """

    def step(self, frames: Frames, state: State | None) -> tuple[Scores, Attention | None, State]:
        """Advances B drives by one frame. `state=None` starts them.

        Returns the scores, the attention or None, and the state to pass with the next frame.
        """
        ...

    def at(self, state: State | None) -> FrameModel:
        """The stateless view of one instant, whose past is `state` (of S drives).

        The view takes N frames, N a multiple of S: frame n is scored with state n // (N // S), so
        the N / S variants of one instant stand together.
        """
        ...


@runtime_checkable
class TakesWindows(Protocol[State]):
    """A recurrent model that takes several frames of each drive at once.

    What does not depend on the state, such as the encoder of the frames, is computed for all of them together.
    """

    def steps(
        self, windows: Float[Tensor, "B T 3 H W"], state: State | None
    ) -> Iterator[tuple[Scores, Attention | None, State]]:
        """What `RecurrentModel.step` returns for each of T frames of B drives, in order."""
        ...


class Cells(NamedTuple):
    """Where a feature grid's cells lie in the frame: cell i is centred on pixel first_px + i * stride_px."""

    first_px: float
    stride_px: float
    frame_px: tuple[int, int] | None = None
    """Height and width of the frames that these are pixels of, where the network resizes frames to them; None of
    those that are explained."""
    offset_px: tuple[float, float] = (0.0, 0.0)
    """What is added to `first_px` along rows and along columns, where the network cuts or pads the frame."""


Layout = Literal["channels-first", "channels-last", "tokens"]
"""How a layer puts out a feature map: [B, C, h, w], [B, h, w, C], or [B, prefix + h * w, C]."""


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """A layer whose output is a feature map, and where its cells lie."""

    layer: nn.Module
    cells: Cells | None = None
    """None where the centres are unknown: the cells are then spread evenly over the frame."""
    head: nn.Linear | None = None
    """The linear layer that turns the map's spatial mean into the scores, where there is one."""
    layout: Layout = "channels-first"
    grid: tuple[int, int] | None = None
    """Rows and columns; needed for tokens."""
    prefix_tokens: int = 0
    """Tokens before those of the grid: class token and registers."""


@dataclass(frozen=True, kw_only=True)
class OwnMap:
    """An explanation that a network writes itself."""

    read: Literal["attention", "selection", "layer"]
    """By calling the model's `attention` or `selection`, or as the mean over channels of a layer's output."""
    cells: Cells | None = None
    layer: nn.Module | None = None
    """With `read="layer"`."""


@runtime_checkable
class HasFeatureMap(Protocol):
    """A network that says where its last feature map is; None where it has none."""

    @property
    def feature_map(self) -> FeatureMap | None: ...


@runtime_checkable
class HasVisionTransformer(Protocol):
    """A network whose scores come from a Vision Transformer inside; None where they do not."""

    @property
    def vit(self) -> nn.Module | None: ...


@runtime_checkable
class WritesMaps(Protocol):
    """A network that writes explanations itself, under their literature names."""

    @property
    def own_maps(self) -> Mapping[str, OwnMap]: ...


@runtime_checkable
class HasEncoder(Protocol):
    """A network that begins with a plain chain of convolutions, poolings and what follows each."""

    @property
    def encoder(self) -> nn.Module: ...
