"""Metrics of explanations: curves, additivity, confidence, complexity, localisation, accuracy under masks, rank correlation, randomisation.

Each is a small class that holds its options and no model, with pure functions beneath. Importing the
package imports none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from driving_xai.metrics.additivity import Infidelity, SensitivityN
    from driving_xai.metrics.aupc import Masking
    from driving_xai.metrics.base import ExplainerMetric, Metric, MetricResult
    from driving_xai.metrics.complexity import Complexity, Sparseness
    from driving_xai.metrics.confidence import AverageDrop, Increase, PercentageIn
    from driving_xai.metrics.faithfulness import PID, Deletion, Insertion, InsertionDeletion
    from driving_xai.metrics.localisation import (
        AUROC,
        AveragePrecision,
        MassInside,
        PointingGame,
        TopKPrecision,
    )
    from driving_xai.metrics.masked_accuracy import AUPC, LogOdds
    from driving_xai.metrics.randomisation import MaxSensitivity, ModelRandomisation
    from driving_xai.metrics.rank_correlation import LimeRankCorrelation
    from driving_xai.metrics.registry import FAMILIES, METRICS, build
    from driving_xai.metrics.road import ROAD

_MODULES = {
    "additivity": ("Infidelity", "SensitivityN"),
    "aupc": ("Masking",),
    "base": ("ExplainerMetric", "Metric", "MetricResult"),
    "complexity": ("Complexity", "Sparseness"),
    "confidence": ("AverageDrop", "Increase", "PercentageIn"),
    "faithfulness": ("Deletion", "Insertion", "InsertionDeletion", "PID"),
    "localisation": ("AUROC", "AveragePrecision", "MassInside", "PointingGame", "TopKPrecision"),
    "masked_accuracy": ("AUPC", "LogOdds"),
    "randomisation": ("MaxSensitivity", "ModelRandomisation"),
    "rank_correlation": ("LimeRankCorrelation",),
    "registry": ("FAMILIES", "METRICS", "build"),
    "road": ("ROAD",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AUPC",
    "AUROC",
    "FAMILIES",
    "METRICS",
    "PID",
    "ROAD",
    "AverageDrop",
    "AveragePrecision",
    "Complexity",
    "Deletion",
    "ExplainerMetric",
    "Increase",
    "Infidelity",
    "Insertion",
    "InsertionDeletion",
    "LimeRankCorrelation",
    "LogOdds",
    "Masking",
    "MassInside",
    "MaxSensitivity",
    "Metric",
    "MetricResult",
    "ModelRandomisation",
    "PercentageIn",
    "PointingGame",
    "SensitivityN",
    "Sparseness",
    "TopKPrecision",
    "build",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
