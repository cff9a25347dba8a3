"""The folder of a run under way: its plan, and a file for each batch that is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.shards.atomic import remove_leftovers, replacing
from data_prep.shards.manifest import canonical_json
from driving_xai.errors import DataError
from driving_xai.evaluation.plan import read_plan, require_same
from driving_xai.evaluation.results import SUMMARY

FOLDER = "parts"


def part_of(parts: Path, number: int) -> Path:
    """The rows of the batch of this number; its maps lie there under other endings."""
    return parts / f"part-{number:06d}.parquet"


def require_complete(parts: Path, batches: int) -> None:
    """Raises DataError where the part of a batch is missing."""
    missing = [number for number in range(batches) if not part_of(parts, number).is_file()]
    if missing:
        raise DataError(
            f"{parts}: {len(missing)} of {batches} batches have no part; run it again with --resume"
        )


def open_parts(out: Path, plan: Mapping[str, Any], *, resume: bool) -> None:
    """Makes the folder of scored batches: new, or of an interrupted run with the same plan."""
    parts = out / FOLDER
    if (out / SUMMARY).exists() or (parts.exists() and not resume):
        state = "results" if (out / SUMMARY).exists() else "an unfinished run"
        raise DataError(f"{out}: already holds {state}; give another folder, or resume")
    remove_leftovers(parts)
    if (parts / "plan.json").is_file():
        require_same(plan, read_plan(parts / "plan.json"), out)
        return
    parts.mkdir(parents=True, exist_ok=True)
    with replacing(parts / "plan.json") as temporary:
        temporary.write_bytes(canonical_json(plan))


class Unfinished(NamedTuple):
    """What an interrupted scoring run left."""

    batches: int
    """That are scored."""
    methods: list[str]
    measures: list[str]


def unfinished(out: Path) -> Unfinished | None:
    """What lies in a folder of an interrupted run; None where there is no such run.

    Raises:
        DataError: its plan cannot be read.
    """
    parts = out / FOLDER
    if (out / SUMMARY).exists() or not (parts / "plan.json").is_file():
        return None
    config = read_plan(parts / "plan.json").get("config")
    known = config if isinstance(config, dict) else {}
    names = ([str(each) for each in known.get(name) or ()] for name in ("methods", "measures"))
    return Unfinished(len(list(parts.glob("part-*.parquet"))), *names)
