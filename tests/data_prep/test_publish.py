"""Publication: whole or recognisably unfinished, continued where it was, never over something else."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from data_prep.errors import DataError, StoreError
from data_prep.prepare import prepare
from data_prep.publish import NOTES, check_url, publish
from data_prep.shards.manifest import FILE_NAME
from data_prep.shards.verify import verify
from tests.data_prep.recordings import challenge
from tests.data_prep.test_prepare import config, contents


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("data_prep.stores.WAITS_S", (0.0, 0.0))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    prepare(config(challenge(tmp_path / "drive")), tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def store():
    memory = fsspec.filesystem("memory", use_listings_cache=False)
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return memory


def objects(store) -> dict[str, bytes]:
    return {path.removeprefix("/bucket/"): file.getvalue() for path, file in store.store.items()}


def test_what_is_published_is_the_output(out, store, tmp_path):
    seen = []
    publish(out, "memory://bucket", on_progress=lambda done, total: seen.append((done, total)))
    assert objects(store) == contents(out)
    assert seen == [(n, 7) for n in range(1, 8)]
    publish(out, f"file://{tmp_path}/copy")
    assert contents(tmp_path / "copy") == contents(out)
    assert verify(tmp_path / "copy").ok


class Cut(BaseException):
    """Stands for a connection that is lost, or a process that is killed."""


@pytest.mark.parametrize("after", range(8))
def test_an_interrupted_publication_has_no_manifest_and_is_continued(after, out, store, monkeypatch):
    sent = []
    put, pipe = store.put_file, store.pipe_file

    def counted(send, path):
        if len(sent) == after:
            raise Cut
        sent.append(path)
        send()

    def put_file(local, target, **_):
        counted(lambda: put(local, target), target)

    def pipe_file(path, value, **_):
        counted(lambda: pipe(path, value), path) if path.endswith(FILE_NAME) else pipe(path, value)

    with monkeypatch.context() as patched:
        patched.setattr(store, "put_file", put_file)
        patched.setattr(store, "pipe_file", pipe_file)
        with pytest.raises(Cut):
            publish(out, "memory://bucket", connections=1)
    assert FILE_NAME not in objects(store)
    again = []
    with monkeypatch.context() as patched:
        patched.setattr(
            store, "put_file", lambda local, target, **_: (again.append(target), put(local, target))
        )
        publish(out, "memory://bucket")
    assert len(again) == 7 - after if after < 7 else not again
    assert objects(store) == contents(out)
    assert not any(NOTES in path for path in objects(store))


def test_a_published_output_is_left_alone_and_another_is_refused(out, store, tmp_path, monkeypatch):
    publish(out, "memory://bucket")
    before = objects(store)
    monkeypatch.setattr(store, "put_file", lambda *_, **__: pytest.fail("sent again"))
    publish(out, "memory://bucket")
    prepare(config(tmp_path / "drive", smoothing=1.0), tmp_path / "other")
    with pytest.raises(DataError, match="holds another output"):
        publish(tmp_path / "other", "memory://bucket")
    assert objects(store) == before


def test_damage_is_not_passed_on(out, store):
    shard = out / "shards/drive-00002.h5"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"drive-00002\.h5: is not what the manifest says"):
        publish(out, "memory://bucket")
    assert FILE_NAME not in objects(store)


def test_places_that_cannot_be_written_are_one_line(out, tmp_path):
    for wrong in (lambda: publish(out, "teleport://bucket"), lambda: check_url("teleport://bucket")):
        with pytest.raises(DataError, match="no store that is known here"):
            wrong()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"does not answer|cannot be used") as error:
        publish(out, f"file://{tmp_path}/file/below")
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"no manifest\.json"):
        publish(tmp_path, "memory://bucket")


def test_a_folder_that_holds_other_things_is_left_alone(out, store, tmp_path):
    store.pipe_file("/bucket/holiday.jpg", b"mine")
    with pytest.raises(DataError, match="holds other files"):
        publish(out, "memory://bucket")
    assert objects(store) == {"holiday.jpg": b"mine"}
    (tmp_path / "empty").mkdir()
    publish(out, f"file://{tmp_path}/empty")
    assert contents(tmp_path / "empty") == contents(out)


def test_an_unfinished_publication_is_continued_by_its_own_output_only(out, store, tmp_path, monkeypatch):
    prepare(config(tmp_path / "drive", smoothing=1.0), tmp_path / "other")
    with monkeypatch.context() as patched:
        patched.setattr(store, "put_file", lambda *_, **__: (_ for _ in ()).throw(OSError("lost")))
        with pytest.raises(StoreError):
            publish(out, "memory://bucket")
    with pytest.raises(DataError, match="unfinished publication of another output"):
        publish(tmp_path / "other", "memory://bucket")
    publish(out, "memory://bucket")
    assert objects(store) == contents(out)


def test_notes_that_a_kill_left_beside_the_manifest_are_removed(out, store):
    publish(out, "memory://bucket")
    store.pipe_file(f"/bucket/{NOTES}/plan", b"")
    publish(out, "memory://bucket")
    assert objects(store) == contents(out)


@pytest.mark.parametrize(
    "url",
    ["", "::", "data:x", "drives", "reference://x", "dir://x", "zip://x", "zip://x::file:///y", "s3://"],
)
def test_what_is_no_url_of_a_folder_is_one_line(url):
    with pytest.raises(DataError) as refused:
        check_url(url)
    assert "\n" not in str(refused.value)
