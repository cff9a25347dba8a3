"""Rows that are joined in buckets are those of a sort in memory, and so is what is condensed of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from driving_xai.evaluation.condensed import CondensedRows
from driving_xai.evaluation.results import (
    FRAME_COLUMNS,
    PER_FRAME_SCHEMA,
    arrow_table,
    read_table,
    write_row_groups,
    write_table,
)
from driving_xai.evaluation.row_order import ROW_ORDER, in_order
from driving_xai.evaluation.summary import summarise
from driving_xai.metrics.quantities import PROBABILITY
from driving_xai.metrics.statistics import BlockBootstrap

METHODS, MEASURES = ("rise", "random"), (("deletion", "target"), ("aupc", "labels"))
FRAMES = 60


def _frames() -> pd.DataFrame:
    """Drives of many frames and of one, one without a name; some frames for two targets."""
    draw = np.random.default_rng(0)
    drives = draw.choice(["b", "a", None, "long name"], size=FRAMES).astype(object)
    frames = pd.DataFrame({"drive": drives, "camera": "", "segment": 0, "frame": np.arange(FRAMES)})
    frames = frames.assign(time_ns=draw.permutation(FRAMES), key="", target="left")
    again = frames.sample(frac=0.5, random_state=0).assign(target="right")
    return pd.concat([frames, again]).sample(frac=1, random_state=1, ignore_index=True)


def _parts(size: int) -> list[pd.DataFrame]:
    draw, frames = np.random.default_rng(1), _frames()
    parts = []
    for start in range(0, len(frames), size):
        some = frames[start : start + size]
        for measure, reference in MEASURES:
            for method in METHODS:
                rows = some.assign(method=method, measure=measure, reference=reference, degenerate=False)
                values = np.where(draw.random(len(rows)) < 0.1, np.nan, draw.random(len(rows)))
                curves = list(draw.random((len(rows), 3)).astype(np.float32))
                parts.append(rows.assign(value=values, curve=curves, prediction=draw.random(len(rows))))
    some = {"truth": np.nan, "error": 0.5, "normalised": np.nan, "base_corrected": np.nan, "chance": np.nan}
    return [part.assign(**some)[PER_FRAME_SCHEMA.names] for part in parts]


def _slow(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Everything in memory, image by image."""
    rows = pd.concat(parts, ignore_index=True)
    same = ["drive", "camera", "frame", "method"]
    of_labels = rows[rows["reference"] == "labels"]
    likeliest = of_labels.groupby(same, dropna=False, sort=False)["prediction"].idxmax()
    rows = rows.drop(index=of_labels.index.difference(likeliest))
    return rows.sort_values(ROW_ORDER, kind="stable", ignore_index=True)


@pytest.mark.parametrize("together", [1, 7, 50, 10**6])
def test_buckets_are_the_rows_of_a_sort_in_memory(tmp_path: Path, together: int) -> None:
    parts = _parts(8)
    scratch = tmp_path / "scratch"
    found = list(in_order(map(arrow_table, parts), scratch, together=together))
    assert not scratch.exists()
    write_table(tmp_path / "slow", _slow(parts))
    write_row_groups(tmp_path / "found", found)
    pd.testing.assert_frame_equal(read_table(tmp_path / "found"), read_table(tmp_path / "slow"))
    groups = pq.ParquetFile(tmp_path / "found").num_row_groups
    assert groups == len(found)
    if together > 1000:
        assert groups == 1
        assert (tmp_path / "found").read_bytes() == (tmp_path / "slow").read_bytes()
    seen: set[tuple] = set()
    for table in found:
        frames = set(table.select(["frame"]).to_pandas()["frame"])
        assert not seen & frames, "a frame's rows are in one bucket"
        seen |= frames


def test_a_run_that_is_killed_leaves_no_scratch_in_the_way(tmp_path: Path) -> None:
    parts, scratch = _parts(8), tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "stretch-00000.arrow").write_bytes(b"half")
    joined = in_order(map(arrow_table, parts), scratch, together=50)
    next(joined)
    joined.close()
    assert not scratch.exists()


@pytest.mark.parametrize("together", [7, 10**6])
def test_condensed_rows_are_summarised_as_whole_ones(tmp_path: Path, together: int) -> None:
    tables = list(in_order(map(arrow_table, _parts(8)), tmp_path / "scratch", together=together))
    whole = pa.concat_tables(tables).to_pandas()
    condensed = CondensedRows()
    for table in tables:
        condensed.add(table)
    once = whole.drop_duplicates(["drive", "camera", "frame", "target"])
    assert condensed.largest_drive == once["drive"].value_counts().max()
    assert condensed.frames == len(whole.drop_duplicates(FRAME_COLUMNS))
    known = {
        "quantity": PROBABILITY,
        "protocol": {"edited": "the frame", "references": {}},
        "measures": {name: {"faithful": "low"} for name, _ in MEASURES},
        "methods": METHODS[:1],
        "controls": METHODS[1:],
        "bootstrap": BlockBootstrap(block=2, resamples=50),
    }
    expected = summarise(whole, **known)
    found = summarise(condensed.rows(), **known, mean_curves=condensed.mean_curves())
    for ours, theirs in zip(found["scores"], expected["scores"], strict=True):
        np.testing.assert_allclose(ours.pop("curve"), theirs.pop("curve"), rtol=1e-12)
    assert json.dumps(found) == json.dumps(expected)


def test_curves_of_a_set_are_kept(tmp_path: Path) -> None:
    """Those of one measure only: its value is of all frames together."""
    condensed = CondensedRows(curves_of=("aupc",))
    for table in in_order(map(arrow_table, _parts(8)), tmp_path / "scratch", together=50):
        condensed.add(table)
    rows = condensed.rows()
    assert (rows["curve"].notna() == (rows["measure"] == "aupc")).all()
