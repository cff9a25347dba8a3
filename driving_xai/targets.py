"""Scores to one scalar per sample: a named direction or class, or closeness to the clean prediction.

Explain with the output itself, score with closeness: closeness has a zero gradient at the clean
point, so it must never be the target of a gradient explanation.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from driving_xai.contracts import Outputs, Scores, Target
from driving_xai.errors import DataError

Direction = Literal["left", "right", "magnitude"]


def left(scores: Scores) -> Float[Tensor, " B"]:
    """The steering itself: larger is further left."""
    return scores[:, 0]


def right(scores: Scores) -> Float[Tensor, " B"]:
    """The steering negated: larger is further right."""
    return -scores[:, 0]


def magnitude(scores: Scores) -> Float[Tensor, " B"]:
    """sign(u) * u: how far the wheel is turned, towards the side the model itself chose.

    The sign is taken as a constant, so the gradient is that of the output towards the chosen side.
    """
    u = scores[:, 0]
    return u * u.detach().sign()


def held_at(target: Target, clean: Scores) -> Target:
    """The target as it stands at the clean prediction, for frames that are edited afterwards.

    `magnitude` asks about the side that the model chose for the clean frame: where an edit turns the
    wheel over to the other side, that is a loss and not the same strength again. Every other target is
    returned as it is.

    Args:
        clean: the prediction for the unedited frames; its rows pair with the scores' rows.
    """
    if target is not magnitude:
        return target
    sides = clean[:, 0].detach().sign()

    def towards_the_chosen_side(scores: Scores) -> Float[Tensor, " B"]:
        return scores[:, 0] * sides

    return towards_the_chosen_side


def output(column: int) -> Target:
    """The score in one column: a class or an action."""

    def score_of_column(scores: Scores) -> Float[Tensor, " B"]:
        return scores[:, column]

    return score_of_column


def closeness(clean: Scores) -> Target:
    """-|score - clean score|, summed over the columns: zero at the clean prediction, negative elsewhere.

    Args:
        clean: the prediction for the unedited frames; its rows pair with the scores' rows.
    """

    def negative_distance(scores: Scores) -> Float[Tensor, " B"]:
        return -(scores - clean).abs().sum(dim=1)

    return negative_distance


def by_name(name: str, outputs: Outputs) -> Target:
    """The target a user names: left, right or magnitude for steering, otherwise an output's name.

    Raises:
        DataError: the model has no such target; the message lists those it has.
    """
    directions = {"left": left, "right": right, "magnitude": magnitude}
    if outputs.kind == "regression":
        if name in directions:
            return directions[name]
        raise DataError(f"target {name!r} is unknown; this model has {', '.join(directions)}")
    if name in outputs.names:
        return output(outputs.names.index(name))
    raise DataError(f"target {name!r} is unknown; this model has {', '.join(outputs.names)}")
