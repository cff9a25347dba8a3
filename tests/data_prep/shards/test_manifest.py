"""The manifest: canonical, whole or absent, and strict about what it reads."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from data_prep.errors import DataError
from data_prep.shards.atomic import replacing, sha256_of
from data_prep.shards.manifest import MAX_MANIFEST_BYTES, Manifest, ShardEntry, canonical_json


@pytest.fixture
def manifest() -> Manifest:
    shard = ShardEntry(
        path="shards/a.h5", sha256="00", bytes=1, rows=2, drive="a", dropped={"undecodable_image": [7]}
    )
    return Manifest(
        kind="sequences",
        config={"smoothing": 0.2},
        vehicle={"name": "car"},
        geometry=None,
        drives=[{"name": "a"}],
        shards=[shard],
        index=[replace(shard, path="index.parquet", dropped={})],
        signals={},
        quality={"a": {"kept": 2}},
        provenance={"reader": "udacity-csv"},
    )


def test_saved_and_loaded_is_the_same(manifest, tmp_path):
    manifest.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded == manifest
    assert loaded.sha256 == manifest.sha256 == sha256_of(tmp_path / "manifest.json")
    assert loaded.rows == 2
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_the_text_does_not_depend_on_the_order_of_keys(manifest):
    backwards = replace(manifest, config=dict(reversed(list({"b": 1, "a": 2}.items()))))
    assert replace(manifest, config={"b": 1, "a": 2}).to_bytes() == backwards.to_bytes()


def test_unknown_numbers_are_refused(manifest):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"speed": math.nan})
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(manifest, quality={"rate": math.inf}).to_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"schema": "driving-xai-shards/9"}, "schema 'driving-xai-shards/9', expected"),
        (lambda m: [m], "schema None, expected"),
        (lambda m: {k: v for k, v in m.items() if k != "quality"}, "prepare again with --overwrite"),
        (lambda m: m | {"surprise": 1}, "surprise"),
        (lambda m: m | {"shards": [{"path": "x"}]}, r"a shard's entry has \['path'\]"),
        (lambda m: m | {"shards": [m["index"] | {"rows": "2"}]}, "wrong type"),
        (lambda m: m | {"shards": None}, "prepare again"),
        (lambda m: m | {"kind": "videos"}, "kind or drives cannot be"),
        (lambda m: m | {"drives": ["a"]}, "kind or drives cannot be"),
        (lambda m: m | {"vehicle": "car"}, "vehicle is 'car'"),
        (lambda m: m | {"shards": [m["index"] | {"rows": -1}]}, "a field cannot be"),
        *(
            (lambda m, path=path: m | {"shards": [m["index"] | {"path": path}]}, "a field cannot be")
            for path in (
                "a\0b",
                "../secret",
                "/etc/passwd",
                "shards/../../x",
                "C:\\x",
                "..\\x",
                "",
                ".",
                "a//b",
            )
        ),
        (lambda m: m | {"index": m["index"] | {"path": "../index.parquet"}}, "a field cannot be"),
        (lambda m: m | {"shards": [m["index"] | {"dropped": {"bad": 7}}]}, "dropped is no list of numbers"),
        (lambda m: m | {"schema": "x" * 9000}, r"\(9000 characters\), expected"),
        (lambda m: m | {"x" * 9000: 1}, r"characters\), expected"),
    ],
)
def test_a_manifest_of_another_form_is_one_clear_line(change, message, manifest, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(change(json.loads(manifest.to_bytes()))))
    with pytest.raises(DataError, match=message) as error:
        Manifest.load(tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 2000,
        b'{"schema": NaN}',
        b'{"schema": 1e999}',
        b'{"schema": "\\ud800"}',
        b'{"schema": ' + b"9" * 5000 + b"}",
    ],
)
def test_damage_is_one_clear_line(data, tmp_path):
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(DataError, match="not valid JSON"):
        Manifest.load(tmp_path)


def test_a_manifest_beyond_any_size_is_not_read(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)  # takes no room on the disk
    with pytest.raises(DataError, match="over 268,435,456 bytes, which is no manifest"):
        Manifest.load(tmp_path)


def test_a_manifest_that_nothing_could_read_is_not_written(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.shards.manifest.MAX_MANIFEST_BYTES", len(manifest.to_bytes()) - 1)
    with pytest.raises(DataError, match=r"1 shards and 1 drives .* use a larger frames_per_shard"):
        manifest.save(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("data_prep.shards.manifest.MAX_MANIFEST_BYTES", len(manifest.to_bytes()))
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_no_manifest_is_one_clear_line(tmp_path):
    for place in (tmp_path, tmp_path / "gone"):
        with pytest.raises(
            DataError, match=r"no manifest\.json; expected a folder written by `driving-xai prep`"
        ):
            Manifest.load(place)


def test_of_a_source_it_is_said_how_to_prepare_it(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"no manifest\.json.*prep image-folder .* SHARDS`"):
        Manifest.load(tmp_path)


def test_a_failed_replacement_leaves_the_old_file_and_no_rest(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def fail_half_way() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert target.read_text() == "old"
    with replacing(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]
