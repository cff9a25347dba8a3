"""Per-frame rows of many parts in the order of drives and time, with a bounded number of rows in memory.

An external merge sort: stretches of parts are sorted and written to scratch, then one bucket of the whole
order after another is gathered from them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

ROW_ORDER = ["drive", "camera", "time_ns", "frame"]
"""What rows are sorted by; rows of one frame keep the order of their parts."""
ROWS_TOGETHER = 2**17
"""Rows in memory at a time, and at least as many in a row group of the result."""
_ROWS_PER_READ = 4096


def in_order(
    tables: Iterable[pa.Table], scratch: Path, *, together: int = ROWS_TOGETHER
) -> Iterator[pa.Table]:
    """All rows in the order of drives and time, in buckets of at least `together` rows.

    A frame's rows are in one bucket. Sets that are no larger than one bucket are one table.

    Args:
        tables: rows of `results.PER_FRAME_SCHEMA`; only some are held at a time.
        scratch: a folder for the sorted stretches, which is made anew and removed in the end.
        together: rows that are held at a time.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        stretches = [
            _write_sorted(scratch / f"stretch-{number:05d}.arrow", stretch, number)
            for number, stretch in enumerate(_stretches(tables, together))
        ]
        if stretches:
            for _, of_bucket in _buckets(pd.concat(stretches, ignore_index=True), together):
                yield _labels_once(in_memory(_gathered(scratch, of_bucket)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def in_memory(table: pa.Table) -> pa.Table:
    """The rows of one table in the order of drives and time; `in_order` for what is in memory already."""
    keys = table.select(ROW_ORDER).to_pandas()
    # Stable, so that metrics and methods keep their order within a frame.
    order = keys.sort_values(ROW_ORDER, kind="stable").index.to_numpy()
    return table.take(pa.array(order)).combine_chunks()


def rows_in_memory(table: pa.Table) -> pa.Table:
    """As `in_memory`, with one row an image of what is measured on all its labels."""
    return _labels_once(in_memory(table))


def _stretches(tables: Iterable[pa.Table], together: int) -> Iterator[pa.Table]:
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if sum(map(len, pending)) >= together:
            yield pa.concat_tables(pending)
            pending = []
    if pending:
        yield pa.concat_tables(pending)


def _write_sorted(path: Path, table: pa.Table, number: int) -> pd.DataFrame:
    """Sorts a stretch into a file; returns its keys, each with the rows that it has there."""
    table = in_memory(table)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        pa.OSFile(str(path.absolute()), "wb") as file,
        pa.ipc.new_file(file, table.schema, options=options) as out,
    ):
        out.write_table(table, max_chunksize=_ROWS_PER_READ)
    keys = table.select(ROW_ORDER).to_pandas()
    first = np.flatnonzero(~keys.duplicated().to_numpy())
    return keys.iloc[first].assign(stretch=number, start=first, stop=[*first[1:], len(keys)])


def _buckets(keys: pd.DataFrame, together: int) -> Iterator[tuple[int, pd.DataFrame]]:
    """The keys of each bucket: all that have one key are in one bucket."""
    keys = keys.sort_values(ROW_ORDER, kind="stable", ignore_index=True)
    rows = (keys["stop"] - keys["start"]).to_numpy()
    before = np.cumsum(rows) - rows
    # Of equal keys in several stretches, the first says where all of them go.
    again = keys[ROW_ORDER].duplicated().to_numpy()
    before = np.maximum.accumulate(np.where(again, 0, before))
    last = max(int(rows.sum()) // together - 1, 0)
    bucket = np.minimum(before // together, last)
    yield from keys.drop(columns=ROW_ORDER).groupby(bucket, sort=True)


def _gathered(scratch: Path, keys: pd.DataFrame) -> pa.Table:
    """The rows of these keys: one slice of each stretch, in the order of stretches."""
    found = []
    for number, of_stretch in keys.groupby("stretch", sort=True):
        path = scratch / f"stretch-{number:05d}.arrow"
        found.append(_slice(path, int(of_stretch["start"].min()), int(of_stretch["stop"].max())))
    return pa.concat_tables(found)


def _slice(path: Path, start: int, stop: int) -> pa.Table:
    first, last = start // _ROWS_PER_READ, (stop - 1) // _ROWS_PER_READ
    with pa.OSFile(str(path.absolute()), "rb") as file, pa.ipc.open_file(file) as stretch:
        read = pa.Table.from_batches([stretch.get_batch(at) for at in range(first, last + 1)])
    return read.slice(start - first * _ROWS_PER_READ, stop - start)


def _labels_once(table: pa.Table) -> pa.Table:
    """Keeps one row an image of what is measured on all its labels: with the map of its likeliest output."""
    of_labels = pc.equal(table["reference"], "labels").to_numpy()
    if not of_labels.any():
        return table
    same = ["drive", "camera", "frame", "measure", "reference", "method"]
    frames = table.select([*same, "prediction"]).to_pandas()
    again = frames.sort_values("prediction", ascending=False, kind="stable").duplicated(same).sort_index()
    return table.filter(pa.array(~(again.to_numpy() & of_labels))).combine_chunks()
