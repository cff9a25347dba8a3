"""Randomisation and robustness: do maps depend on the weights, not on a little noise; do methods agree?

Pure functions over models, frames and explainers, and two metrics made of them; `evaluation.sanity` runs
them along a data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor, nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.base import Explainer
from driving_xai.explain.seeding import generators
from driving_xai.metrics.base import Category, ExplainerMetric, MetricResult
from driving_xai.metrics.statistics import spearman
from driving_xai.models.capabilities import frame_model, scores_of
from driving_xai.models.forward_trace import removed_after
from driving_xai.types import Frames, Saliency, Target


def layers_in_order(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """The layers that own weights, from the output back to the input, as they are called when `run` runs.

    Layers that are not called, and weights that belong to no layer of their own, come last: where the
    order is not known they count as the farthest from the output.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> layers_in_order(model, lambda: model(torch.zeros(1, 2)))
        ['2', '0']
    """
    owners = {name: module for name, module in model.named_modules() if module._parameters}
    owners = {
        name: each for name, each in owners.items() if any(p is not None for p in each._parameters.values())
    }
    called: dict[str, None] = {}
    handles = (
        module.register_forward_pre_hook(lambda module, inputs, name=name: called.setdefault(name))
        for name, module in owners.items()
    )
    with removed_after(handles), torch.no_grad():
        run()
    return [*reversed(called), *(name for name in reversed(owners) if name not in called)]


def randomise_(model: nn.Module, layers: Sequence[str], seed: int) -> None:
    """Draws the weights of some layers anew, in place; running statistics of normalisation stay.

    A layer with `reset_parameters` starts as for training. Other weights are drawn from a normal
    distribution with the mean and the standard deviation they had. A layer's draw depends on the seed
    and its name only, so that a longer list of layers repeats a shorter one's.

    Source: Adebayo et al. 2018, "Sanity checks for saliency maps", section 3.
    """
    modules = dict(model.named_modules())
    for name in layers:
        module = modules[name]
        digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
        buffers = {key: value.clone() for key, value in module.named_buffers(recurse=False)}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(int.from_bytes(digest, "little") >> 1)
            _draw_(module)
            for key, value in buffers.items():
                getattr(module, key).copy_(value)


def _draw_(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    for weight in module.parameters(recurse=False):
        spread = weight.std().item() if weight.numel() > 1 else weight.abs().item()
        drawn = torch.randn(weight.shape, dtype=torch.float32) * spread + weight.mean().item()
        weight.copy_(drawn.to(weight))


@contextmanager
def randomised(model: nn.Module, layers: Sequence[str], seed: int) -> Iterator[None]:
    """The model with the weights of some layers drawn anew; the trained ones are back afterwards.

    The model stays the same object, so that what was fitted to its layers still fits.

    Args:
        model: on any device.
        layers: names of modules; see `layers_in_order`.
        seed: of the weights.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> before = model.weight.clone()
        >>> with randomised(model, [""], seed=1):
        ...     changed = not torch.equal(model.weight, before)
        >>> changed, torch.equal(model.weight, before)
        (True, True)
    """
    modules = dict(model.named_modules())
    tensors = {
        id(each): each
        for name in layers
        for each in (*modules[name].parameters(recurse=False), *modules[name].buffers(recurse=False))
    }
    trained = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    try:
        randomise_(model, layers, seed)
        yield
    finally:
        with torch.no_grad():
            for key, tensor in tensors.items():
                tensor.copy_(trained[key])


def map_correlation(ours: Saliency, theirs: Saliency) -> Float64[np.ndarray, " B"]:
    """Spearman's rank correlation of two maps of each frame, NaN where one is constant.

    Args:
        ours: compared in float32.
        theirs: of the same frames.

    Source: Adebayo et al. 2018, "Sanity checks for saliency maps".

    Example:
        >>> maps = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> map_correlation(maps, -maps)
        array([-1.])
    """
    return spearman(*(maps.detach().flatten(1).float().cpu().numpy() for maps in (ours, theirs)))


def top_overlap(
    ours: Int64[Tensor, "B P"], theirs: Int64[Tensor, "B P"], share: float
) -> Float64[np.ndarray, " B"]:
    """How many of the first-ranked pixels of one map are among the first of the other; by chance `share`.

    Args:
        ours: rankings as of `curves.rank`.
        theirs: of other maps of the same frames.
        share: of the pixels that count as first.
    """
    count = max(1, round(share * ours.shape[1]))
    both: Bool[Tensor, "B P"] = (ours < count) & (theirs < count)
    return (both.sum(1).double() / count).cpu().numpy()


def max_sensitivity(
    explainer: Explainer,
    model: object,
    frames: Frames,
    target: Target,
    saliency: Saliency,
    *,
    radius: float,
    draws: int,
    seed: int,
) -> Float64[np.ndarray, " B"]:
    """The largest change of a map under a little noise, relative to the map; NaN for a map of zeros.

    Args:
        saliency: of the frames without noise.
        radius: of the uniform noise, in the frames' range of 0 to 1.
        draws: of noise for each frame; a frame's depend on the seed and its own pixels only.

    Source: Yeh et al. 2019, "On the (in)fidelity and sensitivity of explanations", eq. 4.
    Deviation: noisy frames are kept within 0 to 1, which is what a camera gives.
    """
    size = saliency.detach().flatten(1).double().norm(dim=1)
    largest = torch.zeros_like(size)
    drawing = generators(frames, seed=seed)
    for _ in range(draws):
        noise = torch.stack([torch.rand(frames.shape[1:], generator=each) for each in drawing])
        noisy = (frames + (2 * noise.to(frames) - 1) * radius).clamp(0, 1)
        change = (explainer(model, noisy, target) - saliency).detach().flatten(1).double().norm(dim=1)
        largest = torch.maximum(largest, change)
    return torch.where(size > 0, largest / size, torch.nan).cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class ModelRandomisation(ExplainerMetric):
    """How alike an explainer's maps stay while the model's weights are drawn anew; low is good.

    The value is the mean over stages of the rank correlation with the maps of the trained weights; the curve
    has each stage, from the output back to the input. The model has its weights back afterwards.

    Args:
        order: whether each stage keeps the layers of those before it, or draws one layer alone.
        seed: of the weights.

    Source: Adebayo et al. 2018, "Sanity checks for saliency maps", section 3.

    Example:
        >>> from driving_xai.explain.gradient import Gradient
        >>> from driving_xai.targets import output
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, 2)).eval()
        >>> result = ModelRandomisation()(net, torch.rand(1, 3, 4, 4), Gradient(), output(0))
        >>> result.curve.shape, result.higher_is_better
        (torch.Size([1, 2]), False)
    """

    name: ClassVar[str] = "model-randomisation"
    category: ClassVar[Category] = "randomisation"
    higher_is_better: ClassVar[bool] = False

    order: Literal["cascading", "independent"] = "cascading"

    def measure(
        self, model: object, frames: Frames, explainer: Explainer, target: Target, maps: Saliency
    ) -> MetricResult:
        """The correlation of each frame; see `ExplainerMetric`.

        Raises:
            UnsupportedModelError: the model is no network, whose layers could be drawn.
        """
        if not isinstance(model, nn.Module):
            raise UnsupportedModelError(
                f"got {type(model).__name__}, expected an nn.Module; give the whole network"
            )
        layers, found = layers_in_order(model, lambda: scores_of(frame_model(model), frames)), []
        for at in range(len(layers)):
            drawn = layers[: at + 1] if self.order == "cascading" else layers[at : at + 1]
            with randomised(model, drawn, self.seed):
                found.append(map_correlation(maps, explainer(model, frames, target)))
        curve = torch.from_numpy(np.stack(found, 1))
        return _result(curve.mean(1), unit="Spearman's correlation", curve=curve)


@dataclass(frozen=True, kw_only=True)
class MaxSensitivity(ExplainerMetric):
    """The largest change of a map under a little noise on the frame, relative to the map; low is good.

    Args:
        radius: of the uniform noise, in the frames' range of 0 to 1.
        draws: of noise for each frame.
        seed: of the noise; a frame's draws depend on its own pixels, not on its batch.

    Source: Yeh et al. 2019, "On the (in)fidelity and sensitivity of explanations", eq. 4.
    Deviation: see `max_sensitivity`.

    Example:
        >>> from driving_xai.explain.gradient import Gradient
        >>> from driving_xai.targets import output
        >>> linear = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
        >>> MaxSensitivity()(linear, torch.rand(1, 3, 4, 4), Gradient(), output(0)).value.tolist()
        [0.0]
    """

    name: ClassVar[str] = "max-sensitivity"
    category: ClassVar[Category] = "robustness"
    higher_is_better: ClassVar[bool] = False

    radius: float = 0.02
    draws: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.radius <= 1 or self.draws < 1:
            raise ValueError(
                f"got radius {self.radius}, draws {self.draws}; expected within (0, 1], 1 or more"
            )

    def measure(
        self, model: object, frames: Frames, explainer: Explainer, target: Target, maps: Saliency
    ) -> MetricResult:
        """The sensitivity of each frame's map; see `ExplainerMetric`."""
        largest = max_sensitivity(
            explainer,
            model,
            frames,
            target,
            maps,
            radius=self.radius,
            draws=self.draws,
            seed=self.seed,
        )
        return _result(torch.from_numpy(largest), unit="share of the map's length")


def _result(
    value: Float64[Tensor, " B"], *, unit: str, curve: Float64[Tensor, "B V"] | None = None
) -> MetricResult:
    mean = float(value[value.isfinite()].mean())
    return MetricResult(value=value, unit=unit, higher_is_better=False, mean=mean, curve=curve)
