"""Saved sanity checks as a report shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.shards.atomic import sha256_of
from driving_xai.errors import DataError
from driving_xai.evaluation.sanity_files import PER_FRAME, SCHEMA, SUMMARY
from driving_xai.evaluation.saved import read_sanity
from driving_xai.report.sources import labels_of

_DETAILS = {"noise": "max-sensitivity", "degenerate": "share"}


@dataclass(frozen=True, kw_only=True)
class Sanity:
    """One folder of sanity checks."""

    label: str
    summary: Mapping[str, Any]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(each["method"] for each in self.summary["means"]))

    @property
    def layers(self) -> list[str]:
        """From the output to the input."""
        return list(dict.fromkeys(each["beside"] for each in self._of("cascading")))

    def cascade(self, method: str, quantity: str) -> list[float | None]:
        """The likeness to the trained model's maps: 1 with all weights kept, then a value for each stage.

        None where it is unknown, as of constant maps, which have no rank correlation.
        """
        found = [
            each["value"]["mean"]
            for each in self._of("cascading")
            if (each["method"], each["quantity"]) == (method, quantity)
        ]
        return [1.0, *found] if found else []

    def value(self, check: str, method: str) -> Mapping[str, Any] | None:
        """The interval of a check that has one number for each method."""
        for each in self._of(check):
            if (each["method"], each["quantity"]) == (method, _DETAILS[check]):
                return each["value"]
        return None

    def agreement(self, method: str, other: str) -> float | None:
        """The mean rank correlation of two methods' maps."""
        for each in self._of("agreement"):
            if each["quantity"] == "spearman" and {each["method"], each["beside"]} == {method, other}:
                return each["value"]["mean"]
        return None

    def _of(self, check: str) -> list[Mapping[str, Any]]:
        return [each for each in self.summary["means"] if each["check"] == check]


def load_sanity(paths: Sequence[Path]) -> list[Sanity]:
    """Reads and checks folders that `driving-xai sanity` wrote.

    Raises:
        DataError: a folder's files are damaged, or changed since, or it is given twice.
    """
    return [
        Sanity(label=label, summary=_read(path)) for path, label in zip(paths, labels_of(paths), strict=True)
    ]


def holds_sanity(path: Path) -> bool:
    """Whether a folder is one of sanity checks."""
    return (path / SUMMARY).is_file()


def _read(root: Path) -> Mapping[str, Any]:
    path, table = root / SUMMARY, root / PER_FRAME
    summary = read_sanity(path, schema=SCHEMA)
    if not table.is_file():
        raise DataError(f"{root}: has no {PER_FRAME}; check again")
    if sha256_of(table) != summary["files"][PER_FRAME]:
        raise DataError(f"{table}: differs from the hash in {SUMMARY}; check again")
    return summary
