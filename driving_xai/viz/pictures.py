"""Pictures for notebooks and papers: a map over its frame, several methods side by side, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from driving_xai.viz.heat import HeatScale, blend_heat, enlargement
from driving_xai.viz.lettering import lettering

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAP_PX = 8
_TEXT_PX = 18


def overlay(
    frame: Float[Tensor, "3 H W"], saliency: Float[Tensor, "H W"], *, signed: bool | None = None
) -> Image.Image:
    """A saliency map over its frame, enlarged by a whole factor where the frame is small.

    Half of every map stays transparent and the strongest half per cent is shown at full strength; of a signed
    map red is more and blue is less. Two pictures made by two calls do not share a scale; see `heat.HeatScale`.

    Args:
        frame: RGB in [0, 1].
        saliency: raw, on the frame's grid.
        signed: whether values below zero are evidence too; None: where there are such.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> import torch
        >>> overlay(torch.rand(3, 80, 160), torch.rand(80, 160)).size
        (960, 480)
    """
    if frame.dim() != 3 or frame.shape[0] != 3 or tuple(saliency.shape) != tuple(frame.shape[1:]):
        raise ValueError(
            f"got a frame of shape {tuple(frame.shape)} and a map of shape {tuple(saliency.shape)}; "
            "expected (3, H, W) and (H, W)"
        )
    picture = _enlarged(frame)
    values = saliency.detach().cpu().numpy().astype(np.float32)
    blend_heat(picture, values, HeatScale.first(values, signed=signed))
    return Image.fromarray(picture)


def panel(frame: Float[Tensor, "3 H W"], maps: Mapping[str, Float[Tensor, "H W"]]) -> Image.Image:
    """The frame and the maps of several methods side by side, each under its name and on its own scale.

    Args:
        frame: RGB in [0, 1].
        maps: by the name that stands over each.

    Raises:
        ValueError: there is no map, or shapes do not fit.

    Example:
        >>> import torch
        >>> panel(torch.rand(3, 80, 160), {"grad-cam": torch.rand(80, 160)}).size
        (1928, 506)
    """
    if not maps:
        raise ValueError("got no map; expected one or more by name")
    pictures = {"frame": _enlarged(frame)}
    pictures |= {name: np.asarray(overlay(frame, saliency)) for name, saliency in maps.items()}
    height, width = pictures["frame"].shape[:2]
    head = _TEXT_PX + _GAP_PX
    whole = np.full((height + head, len(pictures) * (width + _GAP_PX) - _GAP_PX, 3), 255, dtype=np.uint8)
    for place, (name, picture) in enumerate(pictures.items()):
        left = place * (width + _GAP_PX)
        lettering(_TEXT_PX).draw(whole, name, (left, _TEXT_PX), (0, 0, 0))
        whole[head:, left : left + width] = picture
    return Image.fromarray(whole)


def curve_plot(
    fractions: Sequence[float] | Float[Tensor, " V"],
    curves: Mapping[str, Float[Tensor, "B V"]],
    *,
    unit: str = "",
    edited: str = "pixels removed",
) -> Figure:
    """The mean curve of each method, with the middle half of the frames as a band.

    Args:
        fractions: what share of the frame is edited at each point; `MetricResult.fractions`.
        curves: `MetricResult.curve` by method.
        unit: of the curves, for the axis.
        edited: what the fractions are of, for the axis.

    Raises:
        ValueError: there is no curve, or one has another number of points.

    Example:
        >>> import torch
        >>> figure = curve_plot((0, 0.25, 0.5, 0.75, 1), {"random": torch.rand(3, 5)}, unit="probability")
        >>> figure.axes[0].get_ylabel()
        'probability'
    """
    from matplotlib.figure import Figure

    if not curves or any(curve.shape[-1] != len(fractions) for curve in curves.values()):
        got = {name: tuple(curve.shape) for name, curve in curves.items()}
        raise ValueError(f"got curves of shapes {got}; expected one or more of (B, {len(fractions)})")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    percent = 100 * np.asarray(fractions, dtype=np.float64)
    for name, curve in curves.items():
        values = curve.detach().cpu().double().numpy()
        (line,) = axes.plot(percent, values.mean(0), label=name)
        low, high = np.quantile(values, (0.25, 0.75), axis=0)
        axes.fill_between(percent, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel=f"{edited} (%)", ylabel=unit)
    axes.legend(frameon=False)
    return figure


def _enlarged(frame: Float[Tensor, "3 H W"]) -> np.ndarray:
    pixels = (frame.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    factor = enlargement(*pixels.shape[:2])
    return np.ascontiguousarray(pixels.repeat(factor, 0).repeat(factor, 1))
