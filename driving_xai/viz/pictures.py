"""Pictures for notebooks and papers: a map over its frame, several methods side by side, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from driving_xai.errors import NonFiniteError
from driving_xai.viz.heat import HeatScale, blend_heat, enlargement, smoothed
from driving_xai.viz.lettering import lettering

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GAP_PX = 8
_TEXT_PX = 18
_OVERSHOOT = 0.1


def overlay(
    frame: Shaped[Tensor, "..."],
    saliency: Shaped[Tensor, "..."],
    *,
    signed: bool | None = None,
    smooth_px: float = 0,
) -> Image.Image:
    """A saliency map over its frame, enlarged by a whole factor where the frame is small.

    Half of every map stays transparent and the strongest half per cent is shown at full strength; of a signed
    map red is more and blue is less. Two pictures made by two calls do not share a scale; see `heat.HeatScale`.

    Args:
        frame: [3, H, W], RGB in [0, 1], or 0 to 255 of uint8.
        saliency: [H, W], raw, on the frame's grid.
        signed: whether values below zero are evidence too; None: where there are such.
        smooth_px: standard deviation of a Gaussian blur for the eye, in pixels of the frame.

    Raises:
        ValueError: shapes do not fit, or the frame has other values.
        NonFiniteError: the map has NaN or infinity.

    Example:
        >>> import torch
        >>> overlay(torch.rand(3, 80, 160), torch.rand(80, 160)).size
        (960, 480)
    """
    picture = _enlarged(frame)
    values = smoothed(_values(saliency, frame), smooth_px)
    blend_heat(picture, values, HeatScale.first(values, signed=signed))
    return Image.fromarray(picture)


def panel(
    frame: Shaped[Tensor, "..."], maps: Mapping[str, Shaped[Tensor, "..."]], *, smooth_px: float = 0
) -> Image.Image:
    """The frame and the maps of several methods side by side, each under its name and on its own scale.

    Args:
        frame: [3, H, W], RGB in [0, 1], or 0 to 255 of uint8.
        maps: [H, W], by the name that stands over each.
        smooth_px: see `overlay`.

    Raises:
        ValueError: there is no map, shapes do not fit, or the frame has other values.
        NonFiniteError: a map has NaN or infinity.

    Example:
        >>> import torch
        >>> panel(torch.rand(3, 80, 160), {"grad-cam": torch.rand(80, 160)}).size
        (1928, 506)
    """
    if not maps:
        raise ValueError("got no map; expected one or more by name")
    pictures = {"frame": _enlarged(frame)}
    pictures |= {
        name: np.asarray(overlay(frame, saliency, smooth_px=smooth_px)) for name, saliency in maps.items()
    }
    height, width = pictures["frame"].shape[:2]
    head = _TEXT_PX + _GAP_PX
    whole = np.full((height + head, len(pictures) * (width + _GAP_PX) - _GAP_PX, 3), 255, dtype=np.uint8)
    for place, (name, picture) in enumerate(pictures.items()):
        left = place * (width + _GAP_PX)
        lettering(_TEXT_PX).draw(whole, name, (left, _TEXT_PX), (0, 0, 0))
        whole[head:, left : left + width] = picture
    return Image.fromarray(whole)


def curve_plot(
    fractions: Sequence[float] | Float[Tensor, "..."],
    curves: Mapping[str, Float[Tensor, "..."]],
    *,
    unit: str = "",
    edited: str = "pixels removed",
) -> Figure:
    """The mean curve of each method, with the middle half of the frames as a band.

    Args:
        fractions: what share of the frame is edited at each point; `MetricResult.fractions`.
        curves: [B, V] each; `MetricResult.curve` by method.
        unit: of the curves, for the axis.
        edited: what the fractions are of, for the axis.

    Raises:
        ValueError: there is no curve, or one has another shape, or no frame whose curve is finite.

    Example:
        >>> import torch
        >>> figure = curve_plot((0, 0.25, 0.5, 0.75, 1), {"random": torch.rand(3, 5)}, unit="probability")
        >>> figure.axes[0].get_ylabel()
        'probability'
    """
    from matplotlib.figure import Figure

    percent = 100 * np.asarray(fractions, dtype=np.float64)
    _require_curves(curves, percent)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        values = curve.detach().cpu().double().numpy()
        # Frames whose curve is unknown are left out, as in the means of results.
        values = values[np.isfinite(values).all(1)]
        (line,) = axes.plot(percent, values.mean(0), label=name)
        low, high = np.quantile(values, (0.25, 0.75), axis=0)
        axes.fill_between(percent, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel=f"{edited} (%)", ylabel=unit)
    axes.legend(frameon=False)
    return figure


def _require_curves(curves: Mapping[str, Tensor], percent: np.ndarray) -> None:
    if percent.ndim != 1:
        raise ValueError(f"got fractions of shape {percent.shape}; expected (V,), as MetricResult.fractions")
    if not curves or any(
        not isinstance(curve, Tensor) or curve.dim() != 2 or curve.shape[1] != len(percent)
        for curve in curves.values()
    ):
        got = ", ".join(f"{name} of {_shape(curve)}" for name, curve in curves.items())
        raise ValueError(f"got curves {got or 'of no method'}; expected one or more of (B, {len(percent)})")
    if empty := [name for name, curve in curves.items() if not curve.isfinite().all(1).any()]:
        raise ValueError(f"got no finite curve of {empty[0]}; expected one of a frame at least")


def _shape(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _values(saliency: Tensor, frame: Tensor) -> np.ndarray:
    """A map for the scale of colours."""
    if not isinstance(saliency, Tensor) or saliency.shape != frame.shape[1:]:
        raise ValueError(
            f"got a map of {_shape(saliency)} for a frame of {_shape(frame)}; expected (H, W) of (3, H, W)"
        )
    if not saliency.isfinite().all():
        raise NonFiniteError("got a map with NaN or infinity; expected finite values; check the weights")
    return saliency.detach().float().cpu().numpy()


def _enlarged(frame: Tensor) -> np.ndarray:
    if not isinstance(frame, Tensor) or frame.dim() != 3 or frame.shape[0] != 3 or 0 in frame.shape:
        last = isinstance(frame, Tensor) and frame.dim() == 3 and frame.shape[2] == 3
        cure = "; frame.permute(2, 0, 1) puts the channels first" if last else ""
        raise ValueError(f"got a frame of {_shape(frame)}; expected a tensor (3, H, W){cure}")
    frame = frame.detach()
    if frame.dtype != torch.uint8:
        low, high = float(frame.min()), float(frame.max())
        # Resizing overshoots a little.
        if not (frame.is_floating_point() and low > -_OVERSHOOT and high < 1 + _OVERSHOOT):
            raise ValueError(
                f"got a frame of {frame.dtype} with values from {low:g} to {high:g}; expected RGB in [0, 1], or uint8"
            )
        frame = (frame.float().clamp(0, 1) * 255).round().byte()
    pixels = frame.cpu().permute(1, 2, 0).numpy()
    factor = enlargement(*pixels.shape[:2])
    return np.ascontiguousarray(pixels.repeat(factor, 0).repeat(factor, 1))
