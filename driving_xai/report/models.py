"""Which of a report's results are of different models, and how they compare."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from driving_xai.evaluation.model_comparison import ModelComparison, compare_models
from driving_xai.report.sources import Source


def model_comparisons(sources: Sequence[Source]) -> list[ModelComparison]:
    """Every two results of different weights, on the frames of both.

    Results of one model, such as its scores and its replay, are not compared: they hold the same values.
    """
    return [
        compare_models(first.results, second.results, (first.label, second.label))
        for first, second in itertools.combinations(sources, 2)
        if _weights(first) is None or _weights(first) != _weights(second)
    ]


def _weights(source: Source) -> str | None:
    """Their hash; None of a model that has none."""
    return source.summary["plan"].get("checkpoint_sha256") or None
