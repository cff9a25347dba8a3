"""Accuracy while the most salient parts are masked: AUPC and log-odds over a set of frames.

Both are of the mean over all frames, so that a frame has an accuracy but no log-odds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Float

from driving_xai.fills import Fill
from driving_xai.metrics.statistics import LEAST_BLOCKS, BlockBootstrap, Interval

if TYPE_CHECKING:
    from torch import Tensor

Rule = Literal["sigmoid", "logit", "softmax"]
"""When an action counts as predicted: the sigmoid is over 1/2, the logit itself is, or the softmax."""

PREDICTED: Mapping[Rule, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda scores: scores > 0,
    "logit": lambda scores: scores > 0.5,
    "softmax": lambda scores: scores.softmax(-1) > 0.5,
}

Order = Literal["most-first", "least-first"]
"""Whether the most salient parts are masked first or, in negative perturbation, the least salient."""
AttentionBlocks = Literal["first", "all"]
"""In which of a transformer's blocks attention is masked."""


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How parts are masked, and when an output then counts as predicted.

    Raises:
        ValueError: a setting has another value than it may; the message says what is possible.

    Example:
        >>> Masking(order="least-first").rule
        'sigmoid'
    """

    rule: Rule = "sigmoid"
    order: Order = "most-first"
    attention_blocks: AttentionBlocks = "first"
    """See `token_masks.attention_masked`."""
    fill: Fill = "mean"
    """What a masked pixel shows, whatever other measures' pixels do: the paper's mean colour."""

    def __post_init__(self) -> None:
        choices = {"rule": Rule, "order": Order, "attention_blocks": AttentionBlocks, "fill": Fill}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                got = f"got {name} {getattr(self, name)!r} for masks"
                raise ValueError(f"{got}, expected one of: {', '.join(get_args(kind))}")


def accuracies(
    scores: Float[Tensor, "B *variants K"], labels: Float[Tensor, "B K"], *, rule: Rule = "sigmoid"
) -> Float[Tensor, "B *variants"]:
    """The share of a frame's K labels that each variant of it gets right.

    Args:
        scores: logits.
        labels: 0 or 1.

    Source: Zhu et al. 2024, eq. 9.
    Deviation: sigmoid, as the paper implies. The authors' head training and pixel masks ask for a logit
    over 1/2, their token and attention masks for a softmax over 1/2.
    """
    truth = labels.view(len(labels), *[1] * (scores.dim() - 2), -1) > 0.5
    return (PREDICTED[rule](scores) == truth).double().mean(-1)


def aupc(accuracy: Float[np.ndarray, "... V"]) -> Float[np.ndarray, "..."] | float:
    """Area under the perturbation curve: the sum of the mean accuracies in percent, the clean one included.

    Of ten points it is at most 1,000, and 10 times the clean accuracy where masking changes nothing.

    Source: Zhu et al. 2024, eq. 9.

    Example:
        >>> round(float(aupc(np.array([0.75, 0.5, 0.25]))), 6)
        150.0
    """
    return 100 * accuracy.sum(-1)


def log_odds(accuracy: Float[np.ndarray, "... V"]) -> Float[np.ndarray, "..."] | float:
    """The sum over masked points of ln(mean accuracy / mean clean accuracy); 0 where masking changes nothing.

    Minus infinity where a mean accuracy is zero.

    Args:
        accuracy: the clean one first.

    Source: Zhu et al. 2024, eq. 10.
    Deviation: of means over frames; the paper prints the mean of each frame's logarithm, which is
    undefined for a frame with no label right, and its table fits the means.
    """
    with np.errstate(divide="ignore"):
        return np.log(accuracy[..., 1:] / accuracy[..., :1]).sum(-1)


Statistic = Callable[[Float[np.ndarray, "... V"]], Float[np.ndarray, "..."] | float]
"""`aupc` or `log_odds`: of a curve of mean accuracies."""


def interval(
    statistic: Statistic,
    accuracy: Float[np.ndarray, "N V"],
    bootstrap: BlockBootstrap,
    *,
    against: Float[np.ndarray, "N V"] | None = None,
) -> Interval | None:
    """The statistic of all frames with its interval from resampled frames; None where frames are too few.

    Args:
        accuracy: of each frame, in the order of time; of unrelated images any order, with `block=1`.
        against: another method's accuracies of the same frames. The interval is then of the difference,
            the first less this, in the same resampled sets of frames.
    """
    if len(accuracy) < LEAST_BLOCKS * bootstrap.block:
        return None
    found = statistic(accuracy.mean(0)) - (0 if against is None else statistic(against.mean(0)))
    drawn = statistic(bootstrap.means(accuracy))
    if against is not None:
        drawn = drawn - statistic(bootstrap.means(against))
    tail = (1 - bootstrap.level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(mean=float(found), low=float(low), high=float(high))
