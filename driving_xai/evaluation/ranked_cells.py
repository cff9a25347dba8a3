"""What each method was ranked by, under measures that mask cells rather than pixels."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from data_prep.shards.atomic import replacing
from data_prep.shards.manifest import canonical_json
from driving_xai.metrics.base import Metric
from driving_xai.metrics.batch import EvalBatch, RankedMaps

RankedBy = Mapping[str, Mapping[str, str]]
"""By measure and method, as results say it."""
OWN_CELLS = "own cells"
CELL_MEANS = "means of the map over cells"
GIVEN = "means of the given map over cells"


def ranked_by(
    metrics: Mapping[str, Metric],
    methods: Sequence[str],
    given: Collection[str],
    batch: EvalBatch,
    ranked: RankedMaps,
) -> RankedBy:
    """What these measures rank of each method's maps; measures of pixels are left out.

    Args:
        metrics: by name.
        methods: in the order of the ranked maps.
        given: those whose maps were computed elsewhere: a map on pixels, whatever it was made of.
        batch: what is explained.
        ranked: the maps.
    """
    found = {}
    for name, metric in metrics.items():
        if (grid := metric.cell_grid(batch)) is not None:
            otherwise = {method: GIVEN if method in given else CELL_MEANS for method in methods}
            found[name] = {
                method: otherwise[method] if ranked.cells_on(place, grid) is None else OWN_CELLS
                for place, method in enumerate(methods)
            }
    return found


def save(path: Path, found: RankedBy) -> None:
    """Writes what was found of one batch."""
    with replacing(path) as temporary:
        temporary.write_bytes(canonical_json(found))


def joined(files: Iterable[Path]) -> RankedBy:
    """What was found of all batches: it is the same in each."""
    found: dict[str, Mapping[str, str]] = {}
    for file in files:
        found |= json.loads(file.read_text())
    return found
