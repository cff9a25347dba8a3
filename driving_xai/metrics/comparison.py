"""Whether one method is better than another, and by how much: tests, effect sizes, ranks.

Frames 50 ms apart are no independent samples, so tests are on means of blocks of frames. Two methods
are compared on the same frames (paired); results of several trainings are independent (Welch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

from driving_xai.metrics.statistics import LEAST_BLOCKS, BlockBootstrap, Interval

Faithful = Literal["high", "low"]
"""Whether a measure is high or low where a map is faithful."""


@dataclass(frozen=True, kw_only=True)
class SignedRank:
    """A paired test on means of blocks, with its effect size."""

    blocks: int
    p: float
    """Two-sided."""
    rank_biserial: float
    """From -1 to 1: the share of rank sums in favour of a positive difference, less that against."""


@dataclass(frozen=True, kw_only=True)
class Welch:
    """A test of two groups of independent results, whose variances may differ."""

    difference: Interval
    degrees_of_freedom: float
    p: float
    """Two-sided."""
    cohens_d: float
    cliffs_delta: float


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a method stands among others; 1 is the most faithful."""

    rank: float
    """By the means over all frames; equal means share the average of their places."""
    low: float
    high: float
    first: float
    """Share of the resampled drives in which it is the first, or shares the first place."""


def block_means(values: Float[np.ndarray, " N"], block: int) -> Float[np.ndarray, " blocks"]:
    """Means of neighbouring stretches of `block` frames or a little more, so that no frame is left out.

    Example:
        >>> block_means(np.arange(7.0), 3)
        array([1.5, 5. ])
    """
    count = len(values) // block
    return np.array([part.mean() for part in np.array_split(values, count)]) if count else np.empty(0)


def signed_rank(differences: Float[np.ndarray, " N"], block: int) -> SignedRank | None:
    """Wilcoxon's signed-rank test on block means of paired differences; None below eight blocks.

    Neighbouring frames are alike: on single frames the test would find differences that are none.
    Blocks without a difference keep their rank and speak for neither side.

    Args:
        differences: finite, in the order of time.
        block: frames that are averaged; longer than neighbours stay alike.

    Source: Wilcoxon 1945; Pratt 1959 for zeros; the effect size by Kerby 2014.
    """
    means = block_means(differences, block)
    if len(means) < LEAST_BLOCKS:
        return None
    if not means.any():
        return SignedRank(blocks=len(means), p=1.0, rank_biserial=0.0)
    ranks = stats.rankdata(np.abs(means))
    favour = float((ranks * np.sign(means)).sum() / ranks.sum())
    exact = len(means) <= 50 and len(np.unique(np.abs(means))) == len(means) and (means != 0).all()
    found = stats.wilcoxon(means, zero_method="pratt", method="exact" if exact else "approx")
    return SignedRank(blocks=len(means), p=float(found.pvalue), rank_biserial=favour)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for testing all of them: the chance of one false finding or more stays bounded.

    Source: Holm 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    stepped = given[order] * np.arange(len(given), 0, -1)
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1) if len(given) else stepped
    return corrected.tolist()


def student(values: Float[np.ndarray, " N"], *, level: float = 0.95) -> Interval | None:
    """Student's t interval of the mean of independent results, or of paired differences; None below two.

    Not for the frames of one drive, which depend on each other.

    Source: Student 1908.
    """
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1)) * error
    return Interval(mean=mean, low=mean - half, high=mean + half)


def welch(
    ours: Float[np.ndarray, " A"], theirs: Float[np.ndarray, " B"], *, level: float = 0.95
) -> Welch | None:
    """Welch's t-test of results that are independent, say of several seeds; None below two in a group.

    Not for the frames of one drive, which depend on each other.

    Source: Welch 1947.
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    apart = float(np.mean(ours) - np.mean(theirs))
    shares = np.array([np.var(each, ddof=1) / len(each) for each in (ours, theirs)])
    error = float(np.sqrt(shares.sum()))
    if error == 0:
        same = apart == 0
        dof, p, half = float(len(ours) + len(theirs) - 2), float(same), 0.0
    else:
        dof = float(shares.sum() ** 2 / (shares**2 / [len(ours) - 1, len(theirs) - 1]).sum())
        p = float(2 * stats.t.sf(abs(apart) / error, dof))
        half = float(stats.t.ppf(0.5 + level / 2, dof)) * error
    return Welch(
        difference=Interval(mean=apart, low=apart - half, high=apart + half),
        degrees_of_freedom=dof,
        p=p,
        cohens_d=cohens_d(ours, theirs),
        cliffs_delta=cliffs_delta(ours, theirs),
    )


def cohens_d(ours: Float[np.ndarray, " A"], theirs: Float[np.ndarray, " B"]) -> float:
    """The difference of means in units of the pooled standard deviation; infinite where that is 0.

    Source: Cohen 1988, section 2.2.
    """
    spare = len(ours) + len(theirs) - 2
    squares = sum(np.var(each, ddof=1) * (len(each) - 1) for each in (ours, theirs))
    return _in_units(float(np.mean(ours) - np.mean(theirs)), float(np.sqrt(squares / spare)))


def cohens_dz(differences: Float[np.ndarray, " N"]) -> float:
    """The mean of paired differences in units of their standard deviation from frame to frame.

    Source: Cohen 1988, section 2.3.5.
    """
    return _in_units(float(np.mean(differences)), float(np.std(differences, ddof=1)))


def _in_units(difference: float, deviation: float) -> float:
    if deviation > 0:
        return difference / deviation
    return 0.0 if difference == 0 else float(np.copysign(np.inf, difference))


def cliffs_delta(ours: Float[np.ndarray, " A"], theirs: Float[np.ndarray, " B"]) -> float:
    """How much more often a value of ours is above one of theirs than below, over all pairs; -1 to 1.

    Source: Cliff 1993.

    Example:
        >>> cliffs_delta(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
        0.75
    """
    theirs = np.sort(theirs)
    above, not_below = (np.searchsorted(theirs, ours, side=side).sum() for side in ("left", "right"))
    pairs = len(ours) * len(theirs)
    return float((above - (pairs - not_below)) / pairs)


def places(
    values: Float[np.ndarray, "N methods"], faithful: Faithful, bootstrap: BlockBootstrap
) -> list[Place] | None:
    """Each method's place among the others with a percentile interval; None below eight blocks.

    All methods are placed on the same resampled drives, so that what they share does not blur the order.

    Args:
        values: finite, a column for each method, in the order of time.
        faithful: which end is the first place.
        bootstrap: draws the blocks.
    """
    if bootstrap.blocks(len(values)) < LEAST_BLOCKS:
        return None
    sign = -1 if faithful == "high" else 1
    means = bootstrap.means(values)
    drawn = stats.rankdata(sign * means, axis=1)
    tail = (1 - bootstrap.level) / 2
    # Ends are places that were taken, not points between two.
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0, method="inverted_cdf")
    own = stats.rankdata(sign * values.mean(0))
    first = (sign * means == (sign * means).min(1, keepdims=True)).mean(0)
    return [
        Place(rank=float(rank), low=float(down), high=float(up), first=float(share))
        for rank, down, up, share in zip(own, low, high, first, strict=True)
    ]
