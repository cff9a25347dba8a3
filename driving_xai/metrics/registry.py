"""Metrics by their literature names; importing this imports no metric and nothing heavy."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from driving_xai.errors import OptionError
from driving_xai.user_code import contained, imported

if TYPE_CHECKING:
    from driving_xai.metrics.aupc import Masking, Statistic
    from driving_xai.metrics.base import Metric
    from driving_xai.perturb import CurveFill

ENTRY_POINTS = "driving_xai.metrics"
"""The group under which an installed package offers metrics of its own."""


class Entry(NamedTuple):
    """Where a metric is defined.

    Example:
        >>> METRICS["pid-8"].target, dict(METRICS["pid-8"].options)
        ('driving_xai.metrics.faithfulness:PID', {'patch_px': 8})
    """

    target: str
    """`module:Class`."""
    options: Mapping[str, Any] = MappingProxyType({})
    """That the name stands for."""


_FAITHFULNESS = "driving_xai.metrics.faithfulness"
_CONFIDENCE = "driving_xai.metrics.confidence"
_ACCURACY = "driving_xai.metrics.masked_accuracy"
_LOCALISATION = "driving_xai.metrics.localisation"
PATCHES_PX = (1, 2, 4, 8, 16)
"""Sides of the patches in Iida et al. 2022, Table 2."""

_BY_FAMILY: Mapping[str, Mapping[str, Entry]] = {
    "pixels and patches": {
        "deletion": Entry(f"{_FAITHFULNESS}:Deletion"),
        "deletion-window": Entry("driving_xai.metrics.window_deletion:WindowDeletion"),
        "insertion": Entry(f"{_FAITHFULNESS}:Insertion"),
        "insertion-deletion": Entry(f"{_FAITHFULNESS}:InsertionDeletion"),
        **{f"pid-{side}": Entry(f"{_FAITHFULNESS}:PID", {"patch_px": side}) for side in PATCHES_PX},
    },
    "additivity and imputation": {
        "infidelity": Entry("driving_xai.metrics.additivity:Infidelity"),
        "sensitivity-n": Entry("driving_xai.metrics.additivity:SensitivityN"),
        "road": Entry("driving_xai.metrics.road:ROAD"),
    },
    "confidence": {
        "average-drop": Entry(f"{_CONFIDENCE}:AverageDrop"),
        "increase": Entry(f"{_CONFIDENCE}:Increase"),
        "percentage-in": Entry(f"{_CONFIDENCE}:PercentageIn"),
        "percentage-in-logit": Entry(f"{_CONFIDENCE}:PercentageIn", {"scale": "logit"}),
    },
    "accuracy under masks": {
        "aupc": Entry(f"{_ACCURACY}:AUPC"),
        "aupc-token": Entry(f"{_ACCURACY}:AUPC", {"part": "token"}),
        "aupc-attention": Entry(f"{_ACCURACY}:AUPC", {"part": "attention"}),
        "log-odds": Entry(f"{_ACCURACY}:LogOdds"),
        "log-odds-token": Entry(f"{_ACCURACY}:LogOdds", {"part": "token"}),
        "log-odds-attention": Entry(f"{_ACCURACY}:LogOdds", {"part": "attention"}),
    },
    "agreement": {
        "lime-rank-correlation": Entry("driving_xai.metrics.rank_correlation:LimeRankCorrelation"),
    },
    "complexity": {
        "sparseness": Entry("driving_xai.metrics.complexity:Sparseness"),
        "complexity": Entry("driving_xai.metrics.complexity:Complexity"),
    },
    "localisation": {
        "pointing-game": Entry(f"{_LOCALISATION}:PointingGame"),
        "mass-inside": Entry(f"{_LOCALISATION}:MassInside"),
        "top-k-precision": Entry(f"{_LOCALISATION}:TopKPrecision"),
        "auroc": Entry(f"{_LOCALISATION}:AUROC"),
        "average-precision": Entry(f"{_LOCALISATION}:AveragePrecision"),
    },
}
METRICS: Mapping[str, Entry] = {name: each for family in _BY_FAMILY.values() for name, each in family.items()}
"""By name, in the order in which they are listed."""
FAMILIES: Mapping[str, tuple[str, ...]] = {family: tuple(entries) for family, entries in _BY_FAMILY.items()}
"""The names of each family."""


def entry(name: str) -> Entry:
    """Where the metric of a name is defined.

    Args:
        name: of `METRICS`, of an entry point, or `module:Class` of a class of one's own.

    Raises:
        ValueError: no metric has that name; the message lists those there are.
    """
    if name in METRICS:
        return METRICS[name]
    if ":" in name:
        return Entry(name)
    if offered := list(entry_points(group=ENTRY_POINTS, name=name)):
        return Entry(offered[0].value)
    known = [*METRICS, *sorted(each.name for each in entry_points(group=ENTRY_POINTS))]
    raise ValueError(f"got measure {name!r}, expected some of: {', '.join(known)}, or module:Class")


def metric_class(name: str) -> type[Metric]:
    """The class of a name; see `entry`.

    Raises:
        ValueError: there is no such name, module or class, its module raises, or it is no `Metric`.
    """
    from driving_xai.metrics.base import Metric

    target = entry(name).target
    found = imported(target)
    if not (inspect.isclass(found) and issubclass(found, Metric)):
        got = f"class {found.__name__}" if inspect.isclass(found) else type(found).__name__
        raise ValueError(f"{target} is a {got}; expected a subclass of driving_xai.metrics.Metric")
    return found


def build(name: str, **options: Any) -> Metric:
    """The metric of a name.

    Args:
        name: see `entry`.
        options: of the metric's class, such as `fill`.

    Raises:
        ValueError: there is no such metric.
        OptionError: the metric has no such option, or not this value.

    Example:
        >>> build("pid-8", fill="mean")
        PID(batch_size=32, seed=0, fill='mean', patch_px=8, patches_per_step=None)
    """
    kind, chosen = metric_class(name), {**entry(name).options, **options}
    known = inspect.signature(kind).parameters
    if unknown := [each for each in chosen if each not in known]:
        raise OptionError(f"measure {name!r} has no option {unknown[0]!r}; it has {', '.join(known)}")
    try:
        with contained(f"making measure {name!r}"):
            return kind(**chosen)
    except ValueError as error:
        raise OptionError(f"measure {name!r}: {error}") from None


def build_all(
    names: Iterable[str], *, fill: CurveFill, masking: Masking, batch_size: int, seed: int
) -> dict[str, Metric]:
    """These metrics by name, each with those of a run's settings that it has as options.

    Args:
        names: see `entry`.
        fill: what an edited pixel shows.
        masking: of accuracy under masks, its own fill included.
        batch_size: most edited frames in one forward pass.
        seed: of ties, and of metrics that draw.
    """
    settings = {"fill": fill, "masking": masking, "batch_size": batch_size, "seed": seed}
    takes = {name: inspect.signature(metric_class(name)).parameters for name in names}
    return {
        name: build(name, **{key: value for key, value in settings.items() if key in known})
        for name, known in takes.items()
    }


def statistics_of_sets(metrics: Mapping[str, Metric]) -> dict[str, Statistic]:
    """Of these metrics, those whose value is of all frames together: how it is made of their mean curve."""
    found = {name: metric.of_set() for name, metric in metrics.items()}
    return {name: statistic for name, statistic in found.items() if statistic is not None}
