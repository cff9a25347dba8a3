"""Saved results: `results.json`, which says what was measured and how, and every frame's curve.

`per_frame.parquet` is written first and `results.json`, which holds its hash, last: a folder with a
`results.json` is complete. See docs/results.md for every field.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from data_prep.lock import exclusive
from data_prep.shards.atomic import remove_leftovers, replacing, sha256_of
from data_prep.shards.manifest import canonical_json
from driving_xai.errors import DataError
from driving_xai.evaluation.saved import read_results

SCHEMA = "driving-xai-results/2"
SUMMARY, PER_FRAME, MAPS = "results.json", "per_frame.parquet", "maps.h5"
FILES = (PER_FRAME, MAPS)
"""Files whose hashes results.json may hold; the first always."""

FRAME_COLUMNS = ["drive", "camera", "segment", "frame", "time_ns", "key", "target"]
PER_FRAME_SCHEMA = pa.schema(
    [
        ("drive", pa.string()),
        ("camera", pa.string()),
        ("segment", pa.int32()),
        ("frame", pa.int64()),
        ("time_ns", pa.int64()),
        ("key", pa.string()),
        ("target", pa.string()),
        ("method", pa.string()),
        ("measure", pa.string()),
        ("reference", pa.string()),
        ("prediction", pa.float64()),
        ("truth", pa.float64()),
        ("error", pa.float64()),
        ("value", pa.float64()),
        ("normalised", pa.float64()),
        ("base_corrected", pa.float64()),
        ("chance", pa.float64()),
        ("curve", pa.list_(pa.float32())),
        ("degenerate", pa.bool_()),
    ]
)


TEXT_COLUMNS = [field.name for field in PER_FRAME_SCHEMA if pa.types.is_string(field.type)]


class Results:
    """What a scoring run found.

    Args:
        summary: the content of `results.json`: JSON values only.
        per_frame: a row for each frame, method, measure and reference, see `PER_FRAME_SCHEMA`; or the file that
            holds them, which is read when they are first asked for.
    """

    def __init__(self, *, summary: Mapping[str, Any], per_frame: pd.DataFrame | Path) -> None:
        self.summary = summary
        self._per_frame = per_frame

    @property
    def per_frame(self) -> pd.DataFrame:
        """A row for each frame, method, measure and reference; see `PER_FRAME_SCHEMA`.

        Raises:
            DataError: the file that holds them is damaged.
        """
        if isinstance(self._per_frame, Path):
            self._per_frame = read_table(self._per_frame)
        return self._per_frame

    @cached_property
    def without_curves(self) -> pd.DataFrame:
        """As `per_frame` without the curves, which are most of it, and with text as categories.

        Raises:
            DataError: the file that holds them is damaged.
        """
        if isinstance(self._per_frame, Path):
            return read_without_curves(self._per_frame)
        rows = self._per_frame.drop(columns="curve")
        return rows.astype(dict.fromkeys(TEXT_COLUMNS, "category"))

    def curves_of(self, frames: Collection[int]) -> pd.DataFrame:
        """The names and curves of frames with these numbers, in whatever drive; others stay in the file."""
        if isinstance(self._per_frame, Path):
            return _rows_of_frames(self._per_frame, frames)
        return self._per_frame.loc[self._per_frame["frame"].isin(frames), _OF_CURVES]

    def save(self, root: Path, *, beside: Sequence[str] = ()) -> Results:
        """Writes both files, each whole or not at all; returns the results with the files' hashes.

        Args:
            root: the folder.
            beside: names of files of `FILES` that lie there already and belong to the results.
        """
        root.mkdir(parents=True, exist_ok=True)
        (root / SUMMARY).unlink(missing_ok=True)
        write_table(root / PER_FRAME, self.per_frame)
        summary = save_summary(root, self.summary, beside=beside)
        return Results(summary=summary, per_frame=self.per_frame)

    @classmethod
    def load(cls, root: Path) -> Results:
        """Reads a saved summary and checks the files' hashes; the rows are read when they are asked for.

        Raises:
            DataError: missing, damaged, changed since, or of another schema version.
        """
        summary = _read_summary(root / SUMMARY)
        for name, expected in summary["files"].items():
            if not (root / name).is_file():
                raise DataError(f"{root}: has no {name}; score again into an empty folder")
            if sha256_of(root / name) != expected:
                raise DataError(f"{root / name}: differs from the hash in {SUMMARY}; score again")
        return cls(summary=summary, per_frame=root / PER_FRAME)

    def select(self, *, method: str, measure: str, reference: str) -> pd.DataFrame:
        """The rows of one score, in the order of drives and time."""
        table = self.per_frame
        chosen = (
            (table["method"] == method) & (table["measure"] == measure) & (table["reference"] == reference)
        )
        return table[chosen].reset_index(drop=True)


def save_summary(root: Path, summary: Mapping[str, Any], *, beside: Sequence[str] = ()) -> dict[str, Any]:
    """Writes `results.json`, last of all files, with the hashes of those that lie there; returns its content.

    Args:
        root: the folder, with its table.
        summary: what was found.
        beside: see `Results.save`.
    """
    content = {**summary, "schema": SCHEMA, "files": hashes(root, beside)}
    with replacing(root / SUMMARY) as temporary:
        temporary.write_bytes(canonical_json(content))
    return content


def hashes(root: Path, beside: Sequence[str] = ()) -> dict[str, str]:
    """What `files` in results.json says of the table and the files beside it, by name."""
    return {name: sha256_of(root / name) for name in (PER_FRAME, *beside)}


Rows = dict[str, np.ndarray]
"""Columns of `PER_FRAME_SCHEMA`, all of one length."""
_NUMBERS = ("value", "normalised", "base_corrected", "chance")
_MOST = 1e100
"""Squares of larger numbers overflow."""


def frame_rows(
    places: Mapping[str, Sequence[Any] | np.ndarray],
    *,
    methods: Sequence[str],
    measure: str,
    reference: str,
    known: Mapping[str, Float[np.ndarray, " B"]],
    columns: Mapping[str, Float[np.ndarray, "B M ..."]],
    degenerate: Bool[np.ndarray, "B M"],
) -> Rows:
    """The per-frame rows of one measure and reference: M rows for each of B frames, frame by frame.

    Cheap for a single frame too: no table is built.

    Args:
        places: each of `FRAME_COLUMNS`, B values.
        methods: the M names.
        measure: its name.
        reference: what the measure compares with.
        known: `prediction`, `truth` and `error` of each frame, NaN where unknown.
        columns: `value`, `normalised`, `base_corrected`, `chance`, [B, M], and `curve`, [B, M, V]; numbers that
            are left out are NaN, a curve that is left out is null.
        degenerate: whether a map is the same everywhere.

    Example:
        >>> place = {"drive": ["a"], "camera": [""], "segment": [0], "frame": [7], "time_ns": [0], "key": [""],
        ...          "target": ["left"]}
        >>> nothing = {name: np.array([np.nan]) for name in ("prediction", "truth", "error")}
        >>> rows = frame_rows(place, methods=["rise", "random"], measure="deletion", reference="clean",
        ...                   known=nothing, columns={"value": np.array([[2.0, 1.0]])},
        ...                   degenerate=np.zeros((1, 2), dtype=bool))
        >>> rows["method"].tolist(), rows["frame"].tolist(), rows["value"].tolist()
        (['rise', 'random'], [7, 7], [2.0, 1.0])
    """
    count, width = degenerate.shape
    rows: Rows = {name: np.repeat(np.asarray(places[name]), width) for name in FRAME_COLUMNS}
    rows["method"] = np.array([*methods] * count, dtype=object)
    rows["measure"] = np.full(count * width, measure, dtype=object)
    rows["reference"] = np.full(count * width, reference, dtype=object)
    for name in ("prediction", "truth", "error"):
        rows[name] = np.repeat(known[name], width)
    absent = np.full((count, width), np.nan)
    for name in _NUMBERS:
        rows[name] = columns.get(name, absent).reshape(-1)
    rows["curve"] = np.full(count * width, None, dtype=object)
    if "curve" in columns:
        curves = columns["curve"].astype(np.float32, copy=False)
        rows["curve"][:] = list(curves.reshape(count * width, -1))
    rows["degenerate"] = degenerate.reshape(-1)
    return rows


def arrow_table(rows: Rows | pd.DataFrame) -> pa.Table:
    """Per-frame rows as an Arrow table of `PER_FRAME_SCHEMA`; NaN becomes null."""
    columns = [pa.array(rows[field.name], type=field.type, from_pandas=True) for field in PER_FRAME_SCHEMA]
    return pa.Table.from_arrays(columns, schema=PER_FRAME_SCHEMA)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keeps other runs out of a folder of results, and removes what a killed one left half-written.

    Args:
        out: the folder.

    Raises:
        DataError: another run is writing there.
    """
    with exclusive(out):
        remove_leftovers(out)
        yield


def write_table(
    path: Path, rows: Rows | pd.DataFrame, *, sums: Literal["inside", "elsewhere"] = "elsewhere"
) -> None:
    """Writes per-frame rows, whole or not at all; NaN becomes null.

    Args:
        path: the file.
        rows: in their order.
        sums: whether the file holds the checksums of its own pages, or its hash is noted elsewhere.
    """
    with replacing(path) as temporary:
        pq.write_table(arrow_table(rows), temporary, compression="zstd", write_page_checksum=sums == "inside")


def write_row_groups(path: Path, tables: Iterable[pa.Table]) -> None:
    """Writes per-frame rows that come in tables, each as a row group; the file is whole or not there at all.

    One table gives the bytes of `write_table`.

    Args:
        path: the file.
        tables: of `PER_FRAME_SCHEMA`, in the order of the rows.
    """
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, PER_FRAME_SCHEMA, compression="zstd") as file,
    ):
        for table in tables:
            file.write_table(table, row_group_size=max(1, len(table)))


def read_table(path: Path) -> pd.DataFrame:
    """Reads per-frame rows; null numbers become NaN.

    Raises:
        DataError: damaged, its columns are not those of this schema version, or its rows cannot be: a frame
            twice, a number that is infinite.
    """
    frames = _whole(path).to_pandas()
    require_rows(frames, path)
    return frames


def read_rows(path: Path) -> pa.Table:
    """As `read_table`, without a Python object for each curve and text.

    Raises:
        DataError: see `read_table`.
    """
    table = _whole(path)
    require_rows(table.drop_columns(["curve"]).to_pandas(), path)
    return table


def read_without_curves(path: Path) -> pd.DataFrame:
    """As `read_table` without the curves; text columns are categories, some bytes a row.

    Raises:
        DataError: see `read_table`.
    """
    columns = {}
    with _opened(path, read_dictionary=TEXT_COLUMNS) as file:
        for name in PER_FRAME_SCHEMA.names:
            if name != "curve":  # One at a time: buffers of all columns together are as large as the columns.
                column = file.read(columns=[name], use_threads=False)
                column.validate(full=True)
                columns[name] = column.unify_dictionaries().to_pandas()[name]
    frames = pd.DataFrame(columns, copy=False)
    require_rows(frames, path)
    return frames


_ROWS_AT_ONCE = 2**13
_OF_CURVES = ["drive", "camera", "frame", "key", "target", "method", "measure", "reference", "curve"]


def _rows_of_frames(path: Path, frames: Collection[int]) -> pd.DataFrame:
    wanted = pa.array(sorted(frames), type=pa.int64())
    with _opened(path) as file:
        found = [
            batch.filter(pc.is_in(batch["frame"], value_set=wanted))
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=_OF_CURVES, use_threads=False)
        ]
    schema = pa.schema([PER_FRAME_SCHEMA.field(name) for name in _OF_CURVES])
    return pa.Table.from_batches(found, schema).to_pandas()


def _whole(path: Path) -> pa.Table:
    with _opened(path) as file:
        table = file.read()
        table.validate(full=True)
    return table.replace_schema_metadata(None)


@contextmanager
def _opened(path: Path, **how: Any) -> Iterator[pq.ParquetFile]:
    """A file of per-frame rows; what goes wrong while it is read is one line."""
    try:
        known = pq.read_schema(path.absolute())
        if known.equals(PER_FRAME_SCHEMA):
            with pq.ParquetFile(path.absolute(), page_checksum_verification=True, **how) as file:
                yield file
            return
    # A damaged file makes Arrow raise whatever it stumbles over.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise DataError(f"{path}: damaged ({reason}); score again") from None
    raise DataError(f"{path}: has columns {known.names}; expected {PER_FRAME_SCHEMA.names}")


def require_rows(frames: pd.DataFrame, path: Path) -> None:
    """Raises DataError where rows of a table cannot be."""
    known = frames[["method", "measure", "reference", "segment", "frame", "degenerate"]].notna().all()
    if not known.all():
        raise DataError(f"{path}: {known.idxmin()} is unknown in a row; score again")
    for name in ("prediction", "truth", "error", *_NUMBERS):
        if (frames[name].abs() > _MOST).any():
            raise DataError(f"{path}: {name} is infinite or over {_MOST:g} in a row; score again")
    if (frames["time_ns"].abs() > 2**62).any() or (frames["frame"].abs() > 2**53).any():
        raise DataError(f"{path}: a frame or its time is beyond what a recording has; score again")
    twice = frames.duplicated([*FRAME_COLUMNS, "method", "measure", "reference"])
    if twice.any():
        row = frames.loc[twice.idxmax(), ["drive", "frame", "method", "measure", "reference"]].to_dict()
        raise DataError(f"{path}: has the row of {row} twice; score again")


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        return read_results(path, schema=SCHEMA)
    except FileNotFoundError:
        raise DataError(
            f"{path.parent}: no {SUMMARY}; expected a folder that `driving-xai score` wrote"
        ) from None
