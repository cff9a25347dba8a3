"""Whether maps depend on what they should: on the weights, not on a little noise; and whether methods agree.

Pure functions over models, frames and explainers; `sanity_checks` runs them along a route.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from scipy import stats
from torch import Tensor, nn

from driving_xai.models.feature_maps import removed_after
from driving_xai.types import Explainer, FrameModel, Frames, Saliency, Target


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


def spearman(ours: Saliency, theirs: Saliency) -> Float64[np.ndarray, " B"]:
    """The rank correlation of two maps of each frame, ties at their mean rank; NaN where one is constant.

    Source: Spearman 1904; for maps, Adebayo et al. 2018.
    """
    first, second = (_centred_ranks(maps) for maps in (ours, theirs))
    squares = (first**2).sum(1) * (second**2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (first * second).sum(1) / np.sqrt(squares)


def _centred_ranks(maps: Saliency) -> Float64[np.ndarray, "B P"]:
    flat = maps.detach().flatten(1).float().cpu().numpy()
    ranks = stats.rankdata(flat, axis=1)
    return ranks - ranks.mean(1, keepdims=True)


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
    model: FrameModel,
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
    generators = [_generator(frame, seed) for frame in frames]
    for _ in range(draws):
        noise = torch.stack(
            [torch.rand(frame.shape, generator=g) for frame, g in zip(frames, generators, strict=True)]
        )
        noisy = (frames + (2 * noise.to(frames) - 1) * radius).clamp(0, 1)
        change = (explainer(model, noisy, target) - saliency).detach().flatten(1).double().norm(dim=1)
        largest = torch.maximum(largest, change)
    return torch.where(size > 0, largest / size, torch.nan).cpu().numpy()


def _generator(frame: Float[Tensor, "3 H W"], seed: int) -> torch.Generator:
    pixels = frame.detach().cpu().contiguous().numpy()
    digest = hashlib.blake2b(
        pixels.data, digest_size=8, key=seed.to_bytes(16, "little", signed=True)
    ).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
