"""Image shards and indexes: exact bytes back, readable by Hugging Face datasets, damage told."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.errors import DataError
from data_prep.shards.parquet import (
    IMAGES_PER_GROUP,
    SEQUENCE_INDEX,
    LabelledImage,
    image_index,
    label_names,
    read_images,
    read_index,
    write_images,
    write_index,
)
from tests.data_prep.recordings import jpeg

LABELS = ("forward", "stop")


def images(count: int) -> list[LabelledImage]:
    return [
        LabelledImage(jpeg(n, 8, 8), f"{n}.jpg", (n % 2, n % 3), ("train", "test")[n % 2], f"video-{n // 10}")
        for n in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, IMAGES_PER_GROUP, IMAGES_PER_GROUP + 1, 3 * IMAGES_PER_GROUP - 1])
def test_images_come_back_as_they_were(count, tmp_path):
    written = images(count)
    assert write_images(tmp_path / "s.parquet", iter(written), LABELS) == count
    assert read_images(tmp_path / "s.parquet") == written
    assert pq.ParquetFile(tmp_path / "s.parquet").schema_arrow.names == [
        "image",
        "key",
        "split",
        "group",
        *LABELS,
    ]
    if count:
        rows = np.random.default_rng(0).integers(0, count, 9).tolist()
        assert read_images(tmp_path / "s.parquet", rows) == [written[row] for row in rows]
    assert label_names(pq.read_schema(tmp_path / "s.parquet")) == LABELS


def test_the_same_images_are_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_images(tmp_path / name, images(70), LABELS)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_hugging_face_datasets_reads_images_and_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    pillow = pytest.importorskip("PIL.Image")
    written = images(3)
    write_images(tmp_path / "s.parquet", written, LABELS)
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "s.parquet"), cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    for row, image in zip(loaded, written, strict=True):
        assert np.array_equal(np.asarray(row["image"]), np.asarray(pillow.open(io.BytesIO(image.data))))
        assert (row["forward"], row["stop"], row["split"]) == (*image.labels, image.split)


def test_rows_that_are_not_there_and_damage_are_one_clear_line(tmp_path):
    write_images(tmp_path / "s.parquet", images(3), LABELS)
    for rows in ([3], [-1]):
        with pytest.raises(DataError, match="it has 3"):
            read_images(tmp_path / "s.parquet", rows)
    with pytest.raises(DataError, match="no such file"):
        read_images(tmp_path / "gone.parquet")
    data = (tmp_path / "s.parquet").read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.parquet").write_bytes(data[:length])
        with pytest.raises(DataError, match="damaged") as error:
            read_images(tmp_path / "cut.parquet")
        assert "\n" not in str(error.value)


def test_an_index_comes_back_with_its_types(tmp_path):
    index = pd.DataFrame({name: [1, 2] for name in SEQUENCE_INDEX.names}).astype(
        {
            field.name: str if str(field.type) == "string" else field.type.to_pandas_dtype()
            for field in SEQUENCE_INDEX
        }
    )
    index.loc[1, "speed_mps"] = np.nan
    write_index(tmp_path / "index.parquet", index, SEQUENCE_INDEX)
    made = read_index(tmp_path)
    assert list(made) == SEQUENCE_INDEX.names
    assert made["row"].dtype == np.int32
    assert made["time_ns"].dtype == np.int64
    assert np.isnan(made["speed_mps"][1])
    schema = pq.read_schema(tmp_path / "index.parquet")
    assert schema.metadata is None, "pandas' versions would make equal indexes differ"
    assert image_index(LABELS).names == ["shard", "row", "key", "split", "group", *LABELS]


def test_a_missing_or_damaged_index_is_one_clear_line(tmp_path: Path):
    with pytest.raises(DataError, match=r"index\.parquet: no such file"):
        read_index(tmp_path)
    (tmp_path / "index.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"index\.parquet: damaged"):
        read_index(tmp_path)


def sequence_index(rows: int) -> pa.Table:
    columns = [
        pa.array(["a"] * rows if field.type == pa.string() else range(rows), field.type)
        for field in SEQUENCE_INDEX
    ]
    return pa.Table.from_arrays(columns, schema=SEQUENCE_INDEX)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns("split"), "has columns"),
        (lambda t: t.set_column(1, "row", pa.array(["0"] * 3)), "has columns"),
        (
            lambda t: t.set_column(1, t.schema.field(1), pa.array([0, None, 2], pa.int32())),
            "cells of row are empty",
        ),
    ],
)
def test_an_index_with_other_columns_or_empty_cells_is_refused(change, message, tmp_path):
    pq.write_table(sequence_index(3), tmp_path / "index.parquet")
    assert len(read_index(tmp_path)) == 3
    pq.write_table(change(sequence_index(3)), tmp_path / "index.parquet")
    with pytest.raises(DataError, match=message) as error:
        read_index(tmp_path)
    assert "\n" not in str(error.value)


def test_more_rows_than_the_file_can_hold_are_refused(tmp_path):
    # A run of equal values is a few bytes, however long: what unpacks to gigabytes must not be unpacked.
    rows = 3_000_000
    schema = pa.schema([SEQUENCE_INDEX.field("row")])
    pq.write_table(pa.table([pa.array(np.zeros(rows, np.int32))], schema=schema), tmp_path / "index.parquet")
    with pytest.raises(DataError, match="claims 3000000 rows"):
        read_index(tmp_path)


def test_images_in_other_groups_or_columns_are_refused(tmp_path):
    written = images(100)
    write_images(tmp_path / "s.parquet", written, LABELS)
    table = pq.read_table(tmp_path / "s.parquet")
    pq.write_table(table, tmp_path / "one.parquet", row_group_size=30)
    with pytest.raises(DataError, match="row groups of"):
        read_images(tmp_path / "one.parquet", [70])
    pq.write_table(table.drop_columns("group"), tmp_path / "two.parquet", row_group_size=64)
    with pytest.raises(DataError, match="has columns"):
        read_images(tmp_path / "two.parquet")
