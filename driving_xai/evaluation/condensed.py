"""What a summary needs of per-frame rows, gathered as they pass: their curves and names are not kept."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from driving_xai.evaluation.results import FRAME_COLUMNS
from driving_xai.evaluation.summary import Key, frame_numbers

NAMES = ("measure", "reference", "method")
_NUMBERS = ("error", "value", "normalised", "base_corrected", "chance", "degenerate")


@dataclass(kw_only=True)
class CondensedRows:
    """Per-frame rows as `summarise` takes them, some 50 bytes a row.

    Args:
        curves_of: measures whose curves are kept, as their value is of all frames together.
    """

    curves_of: Collection[str] = ()
    frames: int = 0
    """That were added."""
    largest_drive: int = 0
    """Frames and targets of the drive, or group of images, that has most."""
    _parts: list[dict[str, Any]] = field(default_factory=list)
    _codes: dict[str, dict[str, int]] = field(default_factory=lambda: {name: {} for name in NAMES})
    _curves: dict[Key, tuple[np.ndarray, int]] = field(default_factory=dict)
    _last_drive: tuple[object, int] = (None, 0)

    def add(self, table: pa.Table) -> None:
        """Takes rows that follow those before in the order of drives and time; a frame's rows come together."""
        places = table.select(FRAME_COLUMNS).to_pandas()
        numbers = frame_numbers(places).to_numpy()
        part: dict[str, Any] = {"place": (numbers + self.frames).astype(np.int32)}
        self.frames += int(numbers.max()) + 1
        for name in NAMES:
            part[name] = self._coded(name, table[name])
        for name in _NUMBERS:
            part[name] = table[name].to_numpy()
        if self.curves_of:
            of_set = np.isin(table["measure"].to_numpy(), list(self.curves_of))
            part["curve"] = table["curve"].to_pandas().where(of_set, None)
        self._parts.append(part)
        self._add_curves(table, part)
        self._count_drives(places)

    def passed(self, table: pa.Table) -> pa.Table:
        """As `add`; returns the table, for those it goes on to."""
        self.add(table)
        return table

    def rows(self) -> pd.DataFrame:
        """The rows so far; the frames' columns are one number, `place`. Gives up what it held."""
        columns = {}
        for name in list(self._parts[0]):
            columns[name] = np.concatenate([part.pop(name) for part in self._parts])
            if name in NAMES:
                columns[name] = pd.Categorical.from_codes(columns[name], list(self._codes[name]))
        return pd.DataFrame(columns, copy=False)

    def mean_curves(self) -> dict[Key, list[float]]:
        """Of each measure, reference and method that has curves, over the rows with a value."""
        return {key: (total / count).tolist() for key, (total, count) in self._curves.items()}

    def _coded(self, name: str, column: pa.ChunkedArray) -> np.ndarray:
        encoded = column.combine_chunks().dictionary_encode()
        codes = self._codes[name]
        known = [codes.setdefault(label, len(codes)) for label in encoded.dictionary.to_pylist()]
        return np.array(known, dtype=np.int16)[encoded.indices.to_numpy()]

    def _add_curves(self, table: pa.Table, part: dict[str, Any]) -> None:
        curves = table["curve"].combine_chunks()
        if curves.null_count == len(curves):
            return
        names = {name: list(self._codes[name]) for name in NAMES}
        measured = np.flatnonzero(~np.isnan(part["value"]))
        groups = pd.DataFrame({name: part[name][measured] for name in NAMES}).groupby(list(NAMES), sort=False)
        for codes, positions in groups.indices.items():
            chosen = curves.take(pa.array(measured[positions]))
            if chosen.null_count == len(chosen):
                continue
            key = tuple(names[name][code] for name, code in zip(NAMES, codes, strict=True))
            values = chosen.flatten().to_numpy(zero_copy_only=False).reshape(len(chosen), -1)
            total, count = self._curves.get(key, (np.zeros(values.shape[1]), 0))
            self._curves[key] = (total + values.sum(0, dtype=np.float64), count + len(values))

    def _count_drives(self, places: pd.DataFrame) -> None:
        once = places.drop_duplicates(["drive", "camera", "frame", "target"])["drive"].dropna()
        counts: dict[object, int] = once.value_counts(sort=False).to_dict()
        drive, before = self._last_drive
        if drive in counts:  # A drive's rows may be cut in two.
            counts[drive] += before
        if counts:
            last = once.iloc[-1]
            self._last_drive = (last, counts[last])
            self.largest_drive = max(self.largest_drive, max(counts.values()))
