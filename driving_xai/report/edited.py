"""Where the points of saved curves lie, and what is edited between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

_OF_PATCHES = ("token", "attention")


def fractions_of(about: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> list[float]:
    """The share that is edited at each point of a measure's curves; empty where it has none.

    Args:
        about: the measure, as in `measures` of results.json.
        scores: of its methods, as in `scores` of results.json.
    """
    if "fractions" in about:
        return list(about["fractions"])
    known = [score for score in scores if score.get("curve") and score["value"]["mean"] is not None]
    if about.get("kind") != "difference of curves" or not known:
        return []
    curves = np.array([score["curve"] for score in known], dtype=np.float64)
    return equal_steps(curves, np.array([score["value"]["mean"] for score in known]))


def equal_steps(curves: Float[np.ndarray, "N V"], areas: Float[np.ndarray, " N"]) -> list[float]:
    """Points of 0, equal steps, and 1, where the last step may be shorter than the others.

    Insertion and deletion go by as many patches each time and take what is left at last. How many there
    are depends on the frame's size, which results do not hold. The areas under the curves do: by the
    trapezoidal rule they are linear in the length of a step.

    Args:
        curves: over the same points; means over frames do.
        areas: under each of them, from 0 to 1.

    Example:
        >>> [round(at, 6) for at in equal_steps(np.array([[0.0, 0.4, 0.8, 1.0]]), np.array([0.5]))]
        [0.0, 0.4, 0.8, 1.0]
    """
    points = curves.shape[1]
    if points < 3:
        return np.linspace(0, 1, points).tolist()
    whole = ((curves[:, :-2] + curves[:, 1:-1]) / 2).sum(1)
    last = (curves[:, -2] + curves[:, -1]) / 2
    # area = step * whole + (1 - (points - 2) * step) * last, by least squares over the curves.
    rise, left = whole - (points - 2) * last, areas - last
    evenly = 1 / (points - 1)
    step = float(rise @ left / (rise @ rise)) if rise.any() else evenly
    step = min(max(step, evenly), 1 / (points - 2))
    return [*(step * number for number in range(points - 1)), 1.0]


def what_is_edited(about: Mapping[str, Any]) -> str:
    """Of what the fractions are shares.

    Example:
        >>> what_is_edited({"kind": "difference of curves", "patch_px": 8})
        'patches of 8 px edited'
    """
    if about.get("kind") == "shown pixels":
        return "pixels shown"
    if about.get("masked") in _OF_PATCHES:
        return "patches masked"
    side = about.get("patch_px", 1)
    return "pixels edited" if side == 1 else f"patches of {side} px edited"
