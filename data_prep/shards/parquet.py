"""Parquet: the index of every frame, and shards of labelled images.

Image shards are read by Hugging Face `datasets` as they are: the `image` column is the struct
`{bytes, path}` and the schema's metadata names it an Image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import places
from data_prep.errors import DataError, OutputError, StoreError, quoted
from data_prep.shards.atomic import replacing
from data_prep.shards.manifest import Manifest
from data_prep.shards.manifest_parts import INDEX_FOLDER

INDEX_NAME = "index.parquet"
_ROWS_PER_BYTE = 8
"""A file that claims more is refused. Each row has a time or a key of its own: two bytes, compressed."""
# What Arrow lets through for a damaged file; most of its own errors are also of one of these types.
FAULTS = (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError)

IMAGES_PER_GROUP = 64
"""Images in one row group: the least that is read to reach one of them."""

SEQUENCE_INDEX = pa.schema(
    [
        ("shard", pa.string()),
        ("row", pa.int32()),
        ("drive", pa.string()),
        ("camera", pa.string()),
        ("segment", pa.int32()),
        ("frame", pa.int64()),
        ("time_ns", pa.int64()),
        ("split", pa.string()),
        ("block", pa.int32()),
        ("steering_wheel_rad", pa.float64()),
        ("steering_wheel_rad_smoothed", pa.float64()),
        ("speed_mps", pa.float64()),
        ("speed_mps_smoothed", pa.float64()),
        ("inverse_turning_radius", pa.float64()),
    ]
)


def image_index(label_names: Sequence[str]) -> pa.Schema:
    """The index of an image set: where each image is, its split and group, its labels."""
    texts = [(name, pa.string()) for name in ("shard", "key", "split", "group")]
    return pa.schema(
        [texts[0], ("row", pa.int32()), *texts[1:], *((name, pa.int8()) for name in label_names)]
    )


def write_index(path: Path, index: pd.DataFrame, schema: pa.Schema, *, scratch: Path | None = None) -> None:
    """Writes the columns of the schema, whole or not at all; its temporary file lies in `scratch`."""
    # from_arrays leaves pandas' own metadata out: it holds versions, and equal data must be equal bytes.
    columns = [pa.array(index[field.name], type=field.type, from_pandas=False) for field in schema]
    with replacing(path, scratch=scratch) as temporary:
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), temporary, compression="zstd")


def read_index(root: Path, manifest: Manifest | None = None) -> pd.DataFrame:
    """The index of a shards folder: a row for each frame, in the order of drives and time.

    Args:
        root: the folder.
        manifest: its manifest where it is known; None reads it where the index is in parts.

    Raises:
        DataError: it is missing or damaged, or has other columns.
    """
    root = Path(root)
    if manifest is None and (root / INDEX_FOLDER).is_dir():
        manifest = Manifest.load(root)
    names = [INDEX_NAME] if manifest is None else [entry.path for entry in manifest.index]
    parts = [read_index_part(root / name) for name in names]
    columns = parts[0].schema
    if other := next((name for name, part in zip(names, parts, strict=True) if part.schema != columns), None):
        raise _damaged(root / other, f"other columns than {names[0]}")
    return pa.concat_tables(parts).to_pandas()


def read_index_part(path: Path) -> pa.Table:
    """One file of an index.

    Raises:
        DataError: it is missing or damaged, or has other columns.
    """
    with _opened(path) as file:
        names = file.schema_arrow.names
        is_of_images = "key" in names
        _check_schema(file, image_index(names[5:]) if is_of_images else SEQUENCE_INDEX, path)
        return _checked(file.read(), path).replace_schema_metadata(None)


def count_rows(path: Path) -> int:
    """Rows of an index or of a shard of images, by its metadata.

    Raises:
        DataError: it is missing or damaged.
    """
    with _opened(path) as file:
        return file.metadata.num_rows


class LabelledImage(NamedTuple):
    """One row of an image shard."""

    data: bytes
    """The image file's bytes, JPEG or PNG."""
    key: str
    labels: tuple[int, ...]
    split: str
    group: str
    causes: bytes | None = None
    """Which pixels cause each label, see `data_prep.causes`; None where nobody knows."""


def write_images(
    path: Path, images: Iterable[LabelledImage], label_names: Sequence[str], *, with_causes: bool = False
) -> int:
    """Writes one shard under a temporary name that the caller renames; returns its number of rows.

    Bytes are stored as given: JPEG and PNG are compressed already.
    """
    schema = _image_schema(label_names, with_causes)
    rows = 0
    with pq.ParquetWriter(path, schema, compression="none", write_statistics=False) as writer:
        batch: list[LabelledImage] = []
        for image in images:
            batch.append(image)
            if len(batch) == IMAGES_PER_GROUP:
                writer.write_batch(_batch(batch, schema, label_names))
                rows, batch = rows + len(batch), []
        if batch:
            writer.write_batch(_batch(batch, schema, label_names))
    return rows + len(batch)


def read_images(path: Path, rows: Sequence[int] | None = None) -> list[LabelledImage]:
    """The images of one shard: all, or the rows asked for, in that order.

    Only the row groups that hold them are read.

    Raises:
        DataError: the shard is missing or damaged, or has no such row.
    """
    with _opened(path) as file:
        found = file.schema_arrow
        _check_schema(file, _image_schema(label_names(found), "causes" in found.names), path)
        total = file.metadata.num_rows
        _check_groups(file.metadata, path)
        wanted = range(total) if rows is None else rows
        if any(not 0 <= row < total for row in wanted):
            raise DataError(f"{path}: rows {min(wanted)} to {max(wanted)} asked for, it has {total}")
        groups = sorted({row // IMAGES_PER_GROUP for row in wanted})
        table = _checked(file.read_row_groups(groups), path)
        if len(table) != sum(file.metadata.row_group(group).num_rows for group in groups):
            raise _damaged(path, f"{len(table)} rows where its metadata promise others")
        records = table.to_pylist()
    start = {group: position * IMAGES_PER_GROUP for position, group in enumerate(groups)}
    names = label_names(table.schema)
    return [
        _record(records[start[row // IMAGES_PER_GROUP] + row % IMAGES_PER_GROUP], names) for row in wanted
    ]


def label_names(schema: pa.Schema) -> tuple[str, ...]:
    """The label columns of an image shard, in order."""
    return tuple(name for name in schema.names if name not in ("image", "key", "split", "group", "causes"))


def label_names_of(path: Path) -> tuple[str, ...]:
    """The label columns of a shard of images, in order.

    Raises:
        DataError: it is missing or damaged.
    """
    with _opened(path) as file:
        return label_names(file.schema_arrow)


def _record(row: dict, names: Sequence[str]) -> LabelledImage:
    labels = tuple(row[name] for name in names)
    return LabelledImage(
        row["image"]["bytes"], row["key"], labels, row["split"], row["group"], row.get("causes")
    )


def _image_schema(label_names: Sequence[str], with_causes: bool) -> pa.Schema:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = ("key", "split", "group")
    features: dict[str, dict[str, str]] = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": "string", "_type": "Value"} for name in texts}
    features |= {name: {"dtype": "int8", "_type": "Value"} for name in label_names}
    features |= {"causes": {"dtype": "binary", "_type": "Value"}} if with_causes else {}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}
    columns = [
        ("image", image),
        *((t, pa.string()) for t in texts),
        *((name, pa.int8()) for name in label_names),
        *([("causes", pa.binary())] if with_causes else []),
    ]
    return pa.schema(columns, metadata=metadata)


def _batch(images: Sequence[LabelledImage], schema: pa.Schema, label_names: Sequence[str]) -> pa.RecordBatch:
    # The path is a name for readers of the table; the bytes are what is decoded.
    columns: list[list] = [
        [{"bytes": image.data, "path": image.key} for image in images],
        [image.key for image in images],
        [image.split for image in images],
        [image.group for image in images],
    ]
    columns += [[image.labels[position] for image in images] for position in range(len(label_names))]
    if "causes" in schema.names:
        columns.append([image.causes for image in images])
    return pa.record_batch(
        [pa.array(c, type=f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
    )


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file that this module wrote; use it to read only.

    Raises:
        DataError: it is missing, not Parquet, or damaged, also when that shows only while reading.
        StoreError: it lies in a store that cannot be reached.
    """
    try:
        with places.opened(path, lambda here: pq.ParquetFile(here.absolute())) as file:
            most = _ROWS_PER_BYTE * path.stat().st_size
            if not 0 <= file.metadata.num_rows <= most:
                raise _damaged(path, f"claims {file.metadata.num_rows} rows")
            yield file
    except (DataError, OutputError, StoreError):
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `driving-xai verify` on its folder") from None
    except FAULTS as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, reason: str) -> DataError:
    first = (reason.splitlines() or ["no reason given"])[0]
    return DataError(f"{path}: damaged ({quoted(first, most=120)}); run `driving-xai verify` on its folder")


def _check_schema(file: pq.ParquetFile, expected: pa.Schema, path: Path) -> None:
    found = file.schema_arrow
    if not found.equals(expected, check_metadata=False):
        raise _damaged(path, f"has columns {', '.join(found.names)}, expected {', '.join(expected.names)}")


def _check_groups(metadata: pq.FileMetaData, path: Path) -> None:
    """Every group but the last is full: rows are found by division."""
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if sum(rows) != metadata.num_rows or any(count != IMAGES_PER_GROUP for count in rows[:-1]):
        raise _damaged(path, f"row groups of {rows} rows")


def _checked(table: pa.Table, path: Path) -> pa.Table:
    """The table, once its texts are found to be text and every cell to be filled."""
    table.validate(full=True)
    empty = [name for name in table.column_names if table[name].null_count]
    if empty:
        raise _damaged(path, f"cells of {', '.join(empty)} are empty")
    return table
