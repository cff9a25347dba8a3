"""Outputs of many shards, whose manifest and index are in parts: the same to every reader, killed and resumed or not."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep import places
from data_prep.errors import DataError
from data_prep.prepare import prepare
from data_prep.publish import publish
from data_prep.shards import manifest_parts
from data_prep.shards.atomic import replacing
from data_prep.shards.hdf5 import read_frames
from data_prep.shards.manifest import FILE_NAME, Manifest
from data_prep.shards.parquet import read_index
from data_prep.shards.verify import verify
from data_prep.stores import Store
from tests.data_prep import buckets
from tests.data_prep.recordings import challenge
from tests.data_prep.test_prepare import config, contents

INDEX = [f"index/0000{number}.parquet" for number in range(3)]
PARTS = [f"manifest/0000{number}.json" for number in range(3)]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return challenge(tmp_path_factory.mktemp("source") / "drive")


@pytest.fixture(scope="module")
def whole(source) -> Path:
    """Six shards under one manifest."""
    prepare(config(source), source.parent / "whole")
    return source.parent / "whole"


@pytest.fixture
def few(monkeypatch) -> None:
    """Two shards fill a part."""
    monkeypatch.setattr(manifest_parts, "SHARDS_PER_PART", 2)


@pytest.fixture(scope="module")
def made(source) -> Path:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(manifest_parts, "SHARDS_PER_PART", 2)
        prepare(config(source), source.parent / "parts")
    return source.parent / "parts"


@pytest.fixture
def out(made, tmp_path, few) -> Path:
    """Six shards in three parts; a copy."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def test_parts_hold_what_one_file_holds(whole, out):
    one, parts = Manifest.load(whole), Manifest.load(out)
    assert replace(parts, shards_per_part=None, index=one.index) == one
    assert [entry.path for entry in parts.index] == INDEX
    assert [entry.path for entry in parts.parts] == PARTS
    assert read_index(out).equals(read_index(whole))
    assert read_index(out, parts).equals(read_index(whole, one))
    for number, name in enumerate(PARTS):
        part = json.loads((out / name).read_bytes())
        assert part["shards"] == json.loads(one.to_bytes())["shards"][2 * number : 2 * number + 2]
    assert contents(out).keys() - contents(whole).keys() == {*INDEX, *PARTS}
    assert verify(out).ok
    assert (verify(out).shards, verify(out).rows) == (6, 60)


def test_its_hash_is_its_file_s_and_names_every_part(out):
    manifest = Manifest.load(out)
    assert manifest.to_bytes() == (out / FILE_NAME).read_bytes()
    changed = replace(manifest, shards=[replace(manifest.shards[0], sha256="0" * 64), *manifest.shards[1:]])
    assert changed.sha256 != manifest.sha256


def test_as_many_shards_as_fit_a_part_stay_in_one_file(source, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_parts, "SHARDS_PER_PART", 6)
    prepare(config(source), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_drives_are_listed_by_part_with_what_is_said_of_each(whole, tmp_path):
    one = Manifest.load(whole)
    names = [f"drive-{letter}" for letter in "ecadb"]
    shards = [replace(one.shards[0], path=f"shards/{name}.h5", drive=name) for name in names]
    signals = {"label": "inverse_turning_radius", "speed_present": dict.fromkeys(names, True)}
    quality = {name: {"kept": 2} for name in names}
    drives = [{"name": name} for name in names]
    many = replace(one, drives=drives, shards=shards, signals=signals, quality=quality, shards_per_part=2)
    many.save(tmp_path)
    top = json.loads((tmp_path / FILE_NAME).read_bytes())
    assert top["signals"] == {"label": "inverse_turning_radius", "speed_present": {}}
    assert not {"drives", "shards", "quality"} & top.keys()
    parts = [json.loads((tmp_path / name).read_bytes()) for name in PARTS]
    assert [[drive["name"] for drive in part["drives"]] for part in parts] == [
        names[:2],
        names[2:4],
        names[4:],
    ]
    assert [[*part["quality"]] for part in parts] == [
        sorted(names)[:2],
        sorted(names)[2:4],
        sorted(names)[4:],
    ]
    assert [[*part["signals"]["speed_present"]] for part in parts] == [[*part["quality"]] for part in parts]
    assert Manifest.load(tmp_path) == many


def test_a_limit_is_of_each_file_so_parts_pass_where_one_file_is_refused(source, out, monkeypatch, tmp_path):
    manifest = Manifest.load(out)
    largest = max(len(manifest.to_bytes()), *(part.bytes for part in manifest.parts))
    assert len(replace(manifest, shards_per_part=None, index=manifest.index[:1]).to_bytes()) > largest
    monkeypatch.setattr("data_prep.shards.manifest.MAX_MANIFEST_BYTES", largest)
    prepare(config(source), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(out)
    monkeypatch.setattr("data_prep.shards.manifest.MAX_MANIFEST_BYTES", largest - 1)
    with pytest.raises(DataError, match="can be read"):
        manifest.save(tmp_path)
    with pytest.raises(DataError, match="over"):
        Manifest.load(out)


@pytest.mark.parametrize("file", [*INDEX, *PARTS, FILE_NAME])
def test_killed_before_any_of_the_last_files_and_resumed_it_has_the_same_bytes(
    file, source, out, tmp_path, monkeypatch
):
    class Kill(BaseException):
        pass

    def die(target, **options):
        if target == again / file:
            raise Kill
        return replacing(target, **options)

    again = tmp_path / "again"
    with monkeypatch.context() as patched:
        for module in ("parquet", "manifest"):
            patched.setattr(f"data_prep.shards.{module}.replacing", die)
        with pytest.raises(Kill):
            prepare(config(source), again)
    assert not (again / FILE_NAME).exists()
    with pytest.raises(DataError, match="no manifest"):
        Manifest.load(again)
    prepare(config(source), again, resume=True)
    assert contents(again) == contents(out)


def test_an_output_gets_parts_or_loses_them_without_leaving_a_rest(source, whole, out, tmp_path, monkeypatch):
    prepare(config(source), out, resume=True)
    parts = contents(out)
    monkeypatch.setattr(manifest_parts, "SHARDS_PER_PART", 2000)
    prepare(config(source), out, resume=True)
    assert contents(out) == contents(whole)
    monkeypatch.setattr(manifest_parts, "SHARDS_PER_PART", 2)
    prepare(config(source), out, resume=True)
    assert contents(out) == parts
    monkeypatch.setattr(manifest_parts, "SHARDS_PER_PART", 2000)
    prepare(config(source), out, overwrite=True)
    assert contents(out) == contents(whole)
    assert not (out / "index").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (PARTS[1], "the bytes of its part manifest/00001.json are not those of its hash"),
        (INDEX[1], "bytes are not those of the manifest's hash"),
    ],
)
def test_a_damaged_or_missing_part_is_named(name, said, out):
    data = (out / name).read_bytes()
    (out / name).write_bytes(
        data.replace(b"drive", b"drivE", 1) if name in PARTS else data[:-9] + b"x" + data[-8:]
    )

    def found() -> str:
        try:
            return str(verify(out).problems)
        except DataError as error:
            return str(error)

    assert said in found()
    (out / name).unlink()
    assert "missing" in found()
    assert name in found()
    with pytest.raises(DataError, match=name):
        read_index(out)


def test_what_a_lost_part_listed_is_made_again_and_nothing_else(source, out):
    before = contents(out)
    (out / PARTS[0]).unlink()
    (out / PARTS[2]).write_bytes(b"damaged")
    seen = []
    prepare(config(source), out, resume=True, on_progress=lambda progress: seen.append(progress.units_done))
    assert seen == [2, 3, 4, 5, 6]  # the part in the middle could be read
    assert contents(out) == before


def test_a_lost_part_whose_shards_come_out_otherwise_is_not_mended(source, out, tmp_path):
    other = Path(shutil.copytree(source, tmp_path / source.name))
    first, second, *_ = sorted(
        (other / "center").iterdir(), key=lambda file: file.stat().st_size, reverse=True
    )
    first.write_bytes(second.read_bytes().ljust(first.stat().st_size, b"\0"))  # the plan knows sizes
    for name in PARTS:
        (out / name).unlink()
    with pytest.raises(DataError, match=r"json: its shards come out otherwise than before"):
        prepare(config(other), out, resume=True)


def test_parts_of_another_plan_are_not_resumed_and_a_damaged_manifest_is_not_either(source, out):
    (out / PARTS[0]).unlink()
    with pytest.raises(DataError, match="another source, configuration"):
        prepare(config(source, smoothing=1.0), out, resume=True)
    top = json.loads((out / FILE_NAME).read_bytes())
    for damage in ({"provenance": None}, {"signals": []}, {"parts": None}, {"parts": [7]}):
        (out / FILE_NAME).write_text(json.dumps(top | damage))
        with pytest.raises(DataError, match="--overwrite"):
            prepare(config(source), out, resume=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda top: top | {"parts": None}, "parts or shards_per_part cannot be"),
        (lambda top: top | {"shards_per_part": 0}, "parts or shards_per_part cannot be"),
        (lambda top: top | {"parts": [{**top["parts"][0], "path": "../x"}]}, "a field cannot be"),
        (
            lambda top: top | {"parts": [{**top["parts"][0], "bytes": 2**40}]},
            "part manifest/00000.json has over",
        ),
        (lambda top: top | {"signals": []}, "signals is"),
        (lambda top: top | {"index": top["index"][0]}, "index is"),
        (lambda top: top | {"surprise": 1}, "surprise"),
        (lambda top: top | {"signals": {}}, "signals that it does not name"),
        (lambda top: top | {"parts": top["parts"][:2]}, None),
    ],
)
def test_another_form_is_one_line(change, said, out):
    top = json.loads((out / FILE_NAME).read_bytes())
    (out / FILE_NAME).write_text(json.dumps(change(top)))
    if said is None:  # a part that is not named
        assert {problem.path for problem in verify(out).problems} >= {PARTS[2], FILE_NAME}
        return
    with pytest.raises(DataError, match=said) as error:
        Manifest.load(out)
    assert "\n" not in str(error.value)


def test_what_a_part_holds_is_checked(out):
    top, _ = manifest_parts.divide(
        json.loads(
            replace(Manifest.load(out), shards_per_part=None, index=[Manifest.load(out).index[0]]).to_bytes()
        ),
        2,
    )
    part = json.loads((out / PARTS[0]).read_bytes())
    for wrong, said in (
        (7, "part 0 is no part of a manifest (got 7, expected keys "),
        (part | {"schema": "x"}, "'signals'], schema 'x', expected keys "),
        (part | {"more": 1}, "part 0 is no part of a manifest (got keys ['drives', 'more', 'quality', "),
        (part | {"drives": {}}, "part 0"),
        (part | {"signals": {"clock": 1}}, "part 0"),
    ):
        with pytest.raises(DataError, match=re.escape(said)):
            manifest_parts.join(top, [wrong], where="here")


def test_in_a_store_all_parts_are_read_and_shards_when_they_are_opened(source, out, tmp_path, monkeypatch):
    monkeypatch.setenv("DRIVING_XAI_CACHE", str(tmp_path / "cache"))
    shard = "shards/drive-00002.h5"
    with buckets.memory() as bucket:
        prepare(config(source), bucket.url)
        assert bucket.objects() == contents(out)
        root = places.local(bucket.url)
        lying = {name for name in contents(root) if not Path(name).name.startswith(".")}
        assert lying == {FILE_NAME, *INDEX, *PARTS}
        assert read_index(root).equals(read_index(out))
        np.testing.assert_array_equal(read_frames(root / shard, 0, 5), read_frames(out / shard, 0, 5))
        assert verify(root).ok
        with pytest.raises(DataError, match="add --resume"):
            prepare(config(source), bucket.url)
        prepare(config(source), bucket.url, resume=True)
        for name in (*PARTS, *INDEX):
            bucket.remove(name)
        assert {problem.path for problem in verify(root).problems} == {*PARTS, *INDEX}
        buckets.let_go()
        for name in bucket.names():
            bucket.remove(name)
        publish(out, bucket.url)
        assert bucket.objects() == contents(out)


@pytest.mark.parametrize("again", ["prepare", "publish"])
def test_what_a_store_has_lost_of_a_finished_output_is_sent_again(again, source, out, tmp_path, monkeypatch):
    monkeypatch.setenv("DRIVING_XAI_CACHE", str(tmp_path / "cache"))
    send, sent = Store.send, []
    with buckets.memory() as bucket:
        publish(out, bucket.url)
        data = bucket.objects()[PARTS[0]]
        bucket.write(PARTS[0], data.replace(b"drive", b"drivE", 1))
        bucket.remove(PARTS[1])
        bucket.remove(INDEX[2])
        bucket.remove("shards/drive-00005.h5")
        with pytest.raises(DataError, match="add --resume"):
            prepare(config(source), bucket.url)
        monkeypatch.setattr(
            Store, "send", lambda self, file, name: (sent.append(name), send(self, file, name))
        )
        if again == "publish":
            publish(out, bucket.url)
            of_parts = []
        else:
            prepare(config(source), bucket.url, resume=True)
            of_parts = [f"shards/drive-0000{number}.h5" for number in range(4)]
        assert sorted(sent) == sorted([PARTS[0], PARTS[1], INDEX[2], "shards/drive-00005.h5", *of_parts])
        assert bucket.objects() == contents(out)
