"""Parquet: the index of every frame, and shards of labelled images.

Image shards are read by Hugging Face `datasets` as they are: the `image` column is the struct
`{bytes, path}` and the schema's metadata names it an Image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.errors import DataError
from data_prep.shards.atomic import replacing

INDEX_NAME = "index.parquet"
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


def write_index(path: Path, index: pd.DataFrame, schema: pa.Schema) -> None:
    """Writes the columns of the schema, whole or not at all."""
    # from_arrays leaves pandas' own metadata out: it holds versions, and equal data must be equal bytes.
    columns = [pa.array(index[field.name], type=field.type, from_pandas=False) for field in schema]
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), temporary, compression="zstd")


def read_index(root: Path) -> pd.DataFrame:
    """The index of a shards folder: a row for each frame, in the order of drives and time.

    Raises:
        DataError: it is missing or damaged.
    """
    return _table(Path(root) / INDEX_NAME).to_pandas()


class LabelledImage(NamedTuple):
    """One row of an image shard."""

    data: bytes
    """The image file's bytes, JPEG or PNG."""
    key: str
    labels: tuple[int, ...]
    split: str
    group: str


def write_images(path: Path, images: Iterable[LabelledImage], label_names: Sequence[str]) -> int:
    """Writes one shard under a temporary name that the caller renames; returns its number of rows.

    Bytes are stored as given: JPEG and PNG are compressed already.
    """
    schema = _image_schema(label_names)
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
    try:
        with pq.ParquetFile(path) as file:
            total = file.metadata.num_rows
            wanted = range(total) if rows is None else rows
            if any(not 0 <= row < total for row in wanted):
                raise DataError(f"{path}: rows {min(wanted)} to {max(wanted)} asked for, it has {total}")
            # Every group but the last is full.
            groups = sorted({row // IMAGES_PER_GROUP for row in wanted})
            table = file.read_row_groups(groups)
    except FileNotFoundError:
        raise DataError(f"{path}: no such shard; run `driving-xai verify` on its folder") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"{path}: damaged shard ({reason}); run `driving-xai verify` on its folder") from None
    start = {group: position * IMAGES_PER_GROUP for position, group in enumerate(groups)}
    records = table.to_pylist()
    names = label_names(table.schema)
    return [
        _record(records[start[row // IMAGES_PER_GROUP] + row % IMAGES_PER_GROUP], names) for row in wanted
    ]


def label_names(schema: pa.Schema) -> tuple[str, ...]:
    """The label columns of an image shard, in order."""
    return tuple(name for name in schema.names if name not in ("image", "key", "split", "group"))


def _record(row: dict, names: Sequence[str]) -> LabelledImage:
    labels = tuple(row[name] for name in names)
    return LabelledImage(row["image"]["bytes"], row["key"], labels, row["split"], row["group"])


def _image_schema(label_names: Sequence[str]) -> pa.Schema:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = ("key", "split", "group")
    features: dict[str, dict[str, str]] = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": "string", "_type": "Value"} for name in texts}
    features |= {name: {"dtype": "int8", "_type": "Value"} for name in label_names}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}
    columns = [
        ("image", image),
        *((t, pa.string()) for t in texts),
        *((name, pa.int8()) for name in label_names),
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
    return pa.record_batch(
        [pa.array(c, type=f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
    )


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; run `driving-xai verify` on its folder") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"{path}: damaged ({reason}); run `driving-xai verify` on its folder") from None
