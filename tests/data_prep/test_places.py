"""Object stores as places: what is written there is what is written here, and what lies is found out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep import cache, places
from data_prep.errors import DataError, OutputError, StoreError
from data_prep.prepare import prepare
from data_prep.publish import NOTES, check_url, publish
from data_prep.shards.hdf5 import read_frames
from data_prep.shards.manifest import FILE_NAME, Manifest
from data_prep.shards.parquet import read_index
from data_prep.shards.verify import verify
from data_prep.stores import Store
from tests.data_prep import buckets
from tests.data_prep.buckets import Bucket
from tests.data_prep.recordings import challenge
from tests.data_prep.test_prepare import config, contents

SHARD = "shards/drive-00002.h5"


@pytest.fixture(params=[buckets.memory, buckets.s3], ids=["memory", "s3"])
def bucket(request, tmp_path, monkeypatch) -> Iterator[Bucket]:
    monkeypatch.setenv("DRIVING_XAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("data_prep.stores.WAITS_S", (0.0, 0.0))
    with request.param() as opened:
        yield opened
    buckets.let_go()


@pytest.fixture
def source(tmp_path) -> Path:
    return challenge(tmp_path / "drive")


@pytest.fixture
def out(source, tmp_path) -> Path:
    prepare(config(source), tmp_path / "out")
    return tmp_path / "out"


def fetched(root: Path) -> set[str]:
    return {name for name in contents(root) if not Path(name).name.startswith(".")}


def test_prep_into_a_store_writes_the_bytes_of_a_folder(bucket, source, out, tmp_path):
    manifest = prepare(config(source), bucket.url)
    assert bucket.objects() == contents(out)
    assert manifest == Manifest.load(out)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    with pytest.raises(DataError, match="add --resume"):
        prepare(config(source), bucket.url)
    prepare(config(source), bucket.url, resume=True)
    assert bucket.objects() == contents(out)
    for words, settings in (("holds another output", {"smoothing": 1.0}), ("replaces nothing", {})):
        with pytest.raises(DataError, match=words):
            prepare(config(source, **settings), bucket.url, overwrite=not settings)
    assert bucket.objects() == contents(out)


@pytest.mark.parametrize("after", [0, 2, 5])
def test_prep_into_a_store_goes_on_where_it_was_killed_also_elsewhere(
    after, bucket, source, out, tmp_path, monkeypatch
):
    class Kill(BaseException):
        pass

    def die(progress):
        if progress.units_done > after:
            raise Kill

    with pytest.raises(Kill):
        prepare(config(source), bucket.url, on_progress=die)
    assert FILE_NAME not in bucket.objects()
    monkeypatch.setenv("DRIVING_XAI_CACHE", str(tmp_path / "another machine"))
    sent = []
    send = Store.send
    monkeypatch.setattr(Store, "send", lambda self, file, name: (sent.append(name), send(self, file, name)))
    prepare(config(source), bucket.url, resume=True)
    assert len(sent) == 6 - (after + 1) + 1  # the shards that were missing, and the index
    assert bucket.objects() == contents(out)


def test_shards_are_fetched_when_they_are_opened_and_once(bucket, out, monkeypatch):
    publish(out, bucket.url)
    root = places.local(bucket.url)
    assert root.name == "drives"
    assert fetched(root) == {FILE_NAME, "index.parquet"}
    assert read_index(root).equals(read_index(out))
    np.testing.assert_array_equal(read_frames(root / SHARD, 0, 5), read_frames(out / SHARD, 0, 5))
    assert fetched(root) == {FILE_NAME, "index.parquet", SHARD}
    monkeypatch.setattr(Store, "fetch", lambda *_: pytest.fail("fetched again"))
    read_frames(places.local(bucket.url) / SHARD, 0, 5)
    assert places.named(root / SHARD) == f"{bucket.url}/{SHARD}"


def test_a_worker_elsewhere_fetches_by_the_path_alone(bucket, out):
    publish(out, bucket.url)
    root = places.local(bucket.url)
    buckets.let_go()
    for file in sorted(root.parents[1].rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    np.testing.assert_array_equal(read_frames(root / SHARD, 0, 5), read_frames(out / SHARD, 0, 5))


def test_what_is_replaced_in_the_store_is_never_mixed(bucket, source, out, tmp_path):
    publish(out, bucket.url)
    old = places.local(bucket.url)
    for name in bucket.objects():
        bucket.remove(name)
    prepare(config(source, smoothing=1.0), tmp_path / "other")
    publish(tmp_path / "other", bucket.url)
    with pytest.raises(DataError, match="not those of the manifest's hash"):
        read_frames(old / SHARD, 0, 5)
    new = places.local(bucket.url)
    assert new != old
    assert read_index(new).equals(read_index(tmp_path / "other"))


@pytest.mark.parametrize("name", [SHARD, "index.parquet"])
def test_a_store_that_lies_about_a_file_is_one_line(name, bucket, out):
    publish(out, bucket.url)
    data = bytearray(bucket.objects()[name])
    data[-9] ^= 1
    bucket.write(name, bytes(data))
    with pytest.raises(DataError, match=r"its bytes are not those of the manifest's hash") as lie:
        read_frames(places.local(bucket.url) / SHARD, 0, 5)
    assert str(lie.value).startswith(f"{bucket.url}/{name}: ")
    bucket.remove(name)
    with pytest.raises(DataError, match="no such object"):
        read_frames(places.local(bucket.url) / SHARD, 0, 5)


def test_verify_looks_at_what_lies_in_the_store_now(bucket, out):
    publish(out, bucket.url)
    root = places.local(bucket.url)
    assert verify(root).ok
    data = bytearray(bucket.objects()[SHARD])
    data[-9] ^= 1
    bucket.write(SHARD, bytes(data))
    bucket.write("holiday.jpg", b"mine")
    bucket.remove("shards/drive-00004.h5")
    found = dict(verify(root).problems)
    assert found.keys() == {SHARD, "holiday.jpg", "shards/drive-00004.h5"}
    assert "hash" in found[SHARD]
    assert "no such object" in found["shards/drive-00004.h5"]


def test_the_cache_keeps_its_bound(bucket, out, monkeypatch):
    publish(out, bucket.url)
    root, size = places.local(bucket.url), (out / SHARD).stat().st_size
    monkeypatch.setattr(cache, "_RECENT_S", -1.0)
    monkeypatch.setenv(
        "DRIVING_XAI_CACHE_GB", str((2.5 * size + sum(p.stat().st_size for p in root.glob("*.*"))) / 1e9)
    )
    for number in (0, 1, 0, 2, 3):
        read_frames(root / f"shards/drive-0000{number}.h5", 0, 5)
        time.sleep(0.02)
    assert fetched(root) == {FILE_NAME, "index.parquet", "shards/drive-00002.h5", "shards/drive-00003.h5"}
    monkeypatch.setenv("DRIVING_XAI_CACHE_GB", "0.000001")
    with pytest.raises(OutputError, match="set DRIVING_XAI_CACHE_GB to more"):
        read_frames(root / "shards/drive-00005.h5", 0, 5)
    monkeypatch.setenv("DRIVING_XAI_CACHE_GB", "much")
    with pytest.raises(DataError, match="expected a number of gigabytes"):
        read_frames(root / "shards/drive-00005.h5", 0, 5)


def test_a_full_cache_disk_is_one_line_and_later_goes_on(bucket, out, monkeypatch):
    publish(out, bucket.url)
    root = places.local(bucket.url)

    def full(self, name, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Store, "fetch", full)
        with pytest.raises(OutputError, match=r"No space left on device.*DRIVING_XAI_CACHE"):
            read_frames(root / SHARD, 0, 5)
    assert fetched(root) == {FILE_NAME, "index.parquet"}
    assert len(read_frames(root / SHARD, 0, 5)) == 5


def test_a_fault_that_passes_is_tried_again(bucket, out, monkeypatch):
    publish(out, bucket.url)
    root = places.local(bucket.url)
    files, tries = Store.open(bucket.url).files, []
    get = files.get_file

    def flaky(*arguments, **options):
        tries.append(arguments)
        if len(tries) < 3:
            raise ConnectionResetError("reset by peer")
        return get(*arguments, **options)

    monkeypatch.setattr(files, "get_file", flaky)
    assert len(read_frames(root / SHARD, 0, 5)) == 5
    monkeypatch.setattr(
        files, "get_file", lambda *_, **__: (_ for _ in ()).throw(ConnectionResetError("reset"))
    )
    with pytest.raises(StoreError, match=r"does not answer as it should.*reset"):
        read_frames(root / "shards/drive-00003.h5", 0, 5)


def test_other_folders_and_files_come_whole_and_anew_when_they_change(bucket, tmp_path):
    bucket.write("model/config.json", b"{}")
    bucket.write("model/deep/er.txt", b"deep")
    root = places.local(f"{bucket.url}/model/")
    assert contents(root).items() >= {"config.json": b"{}", "deep/er.txt": b"deep"}.items()
    assert places.local(f"{bucket.url}/model/config.json").read_bytes() == b"{}"
    bucket.write("model/config.json", b"[]")
    assert (places.local(f"{bucket.url}/model") / "config.json").read_bytes() == b"[]"
    assert (root / "config.json").read_bytes() == b"{}"
    with pytest.raises(DataError, match="nothing lies there"):
        places.local(f"{bucket.url}/nothing")


def test_local_paths_stay_as_they_are(tmp_path, monkeypatch):
    for text in ("run:1", "run:1/shards", "s3:/x", "-", "/a:b/c"):
        assert places.local(text) == Path(text)
        assert places.present(Path(text)) == Path(text)
    assert places.local("file:///mnt/drives") == Path("/mnt/drives")
    assert places.local_text("timm:resnet18") == "timm:resnet18"


def test_a_store_whose_package_is_missing_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(DataError, match=r"gs://b/x: needs gcsfs; install it, as with driving-xai\[gs\]"):
        places.local("gs://b/x")


@pytest.fixture
def s3(tmp_path, monkeypatch) -> Iterator[Bucket]:
    monkeypatch.setenv("DRIVING_XAI_CACHE", str(tmp_path / "cache"))
    with buckets.s3() as opened:
        yield opened


def run(*words: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "driving_xai", *map(str, words)], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("setting", "value", "bucket_name", "said"),
    [
        ("AWS_ACCESS_KEY_ID", None, "bucket", "no credentials are found"),
        ("AWS_DEFAULT_REGION", "us-east-1", "nobody", "there is no such bucket"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "bucket", "the store does not answer as it should"),
    ],
)
def test_what_a_store_refuses_is_one_line_and_exit_code_1(
    setting, value, bucket_name, said, s3, source, monkeypatch
):
    monkeypatch.delenv(setting) if value is None else monkeypatch.setenv(setting, value)
    if value is None:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    url = f"s3://{bucket_name}/x"
    for words in (("prep", "udacity-csv", source, url), ("verify", url)):
        done = run(*words)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert f"driving-xai: {url}" in done.stderr
        assert said in done.stderr


def test_a_server_that_dies_in_the_middle_leaves_what_goes_on(s3, source, out):
    def die(progress):
        if progress.units_done == 3:
            s3.server.stop()

    with pytest.raises(StoreError, match="does not answer as it should") as refused:
        prepare(config(source), s3.url, on_progress=die)
    assert "\n" not in str(refused.value)
    s3.restart()
    assert FILE_NAME not in s3.objects()
    assert len([name for name in s3.objects() if name.startswith("shards/")]) == 3
    assert any(NOTES in name for name in s3.objects())
    prepare(config(source), s3.url, resume=True)
    assert s3.objects() == contents(out)


def test_a_place_that_cannot_be_written_is_found_at_once(s3, monkeypatch):
    check_url(s3.url)
    assert s3.objects() == {}
    files = Store.open(s3.url).files
    monkeypatch.setattr(
        files, "pipe_file", lambda *_, **__: (_ for _ in ()).throw(PermissionError("Access Denied"))
    )
    with pytest.raises(StoreError, match="access is denied"):
        check_url(s3.url)


def test_an_object_that_is_replaced_while_it_is_fetched_is_noticed_also_at_the_same_size(
    bucket, tmp_path, monkeypatch
):
    bucket.write("model/weights.bin", b"old bytes")
    fetch = Store.fetch

    def late(self, name, target):
        fetch(self, name, target)
        time.sleep(0.01)
        bucket.write("model/weights.bin", b"new bytes")

    with monkeypatch.context() as patched:
        patched.setattr(Store, "fetch", late)
        with pytest.raises(DataError, match=r"weights\.bin: was replaced while it was fetched; run it again"):
            places.local(f"{bucket.url}/model")
    assert not [path for path in (tmp_path / "cache").rglob("weights.bin*") if path.stat().st_size]
    assert (places.local(f"{bucket.url}/model") / "weights.bin").read_bytes() == b"new bytes"


def test_a_file_that_comes_whole_is_as_old_as_in_the_store(bucket, tmp_path, monkeypatch):
    bucket.write("log/drive.bin", b"frames")
    first = places.local(f"{bucket.url}/log") / "drive.bin"
    monkeypatch.setenv("DRIVING_XAI_CACHE", str(tmp_path / "another machine"))
    time.sleep(0.02)
    again = places.local(f"{bucket.url}/log") / "drive.bin"
    assert first != again
    assert first.stat().st_mtime == again.stat().st_mtime
    assert again.stat().st_mtime < again.stat().st_atime


def test_what_is_removed_in_the_moment_before_it_is_opened_is_fetched_again(bucket, out, monkeypatch):
    publish(out, bucket.url)
    root = places.local(bucket.url)
    present, removals = places.present, []

    def removed_meanwhile(path):
        found = present(path)
        if not removals:
            removals.append(path)
            path.unlink()
        return found

    monkeypatch.setattr(places, "present", removed_meanwhile)
    np.testing.assert_array_equal(read_frames(root / SHARD, 0, 5), read_frames(out / SHARD, 0, 5))
    assert removals == [root / SHARD]


def test_nothing_is_removed_while_it_is_being_opened_and_no_view_that_another_process_holds(
    bucket, out, monkeypatch
):
    publish(out, bucket.url)
    root = places.local(bucket.url)
    read_frames(root / SHARD, 0, 5)
    monkeypatch.setattr(cache, "_RECENT_S", -1.0)
    with cache.kept(root / SHARD):
        assert not cache._removed(root, root / SHARD)
    assert not cache._removed(root, root / FILE_NAME)
    assert cache._removed(root, root / SHARD)
    # As another process sees it: the lock is this one's.
    with monkeypatch.context() as patched:
        patched.setattr(cache, "_HELD", {})
        assert not cache._removed(root, root / FILE_NAME)
    buckets.let_go()
    assert cache._removed(root, root / FILE_NAME)


def test_who_wants_a_view_waits_until_it_is_removed_and_then_fetches_it(bucket, out):
    publish(out, bucket.url)
    root = places.local(bucket.url)
    buckets.let_go()
    waiting = threading.Thread(target=places.local, args=(bucket.url,))
    with cache._unheld(root) as is_free:
        assert is_free
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        for file in (root / FILE_NAME, root / "index.parquet"):
            file.unlink()
    waiting.join(20)
    assert fetched(root) == {FILE_NAME, "index.parquet"}


def test_what_is_removed_leaves_no_folder_and_all_files_share_a_few_locks(out, tmp_path, monkeypatch):
    monkeypatch.setenv("DRIVING_XAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_SLOTS", 2)
    with buckets.memory() as bucket:
        publish(out, bucket.url)
        root = places.local(bucket.url)
        for number in range(6):
            read_frames(root / f"shards/drive-0000{number}.h5", 0, 5)
        assert {file.name for file in (tmp_path / "cache/locks").glob("*-*")} <= {
            f"{kind}-000{slot}" for kind in ("file", "view") for slot in range(2)
        }
        buckets.let_go()
        monkeypatch.setattr(cache, "_RECENT_S", -1.0)
        monkeypatch.setenv("DRIVING_XAI_CACHE_GB", "0.000001")
        cache.make_room(1000)
        assert not [*(tmp_path / "cache/views").iterdir()]
        monkeypatch.delenv("DRIVING_XAI_CACHE_GB")
        np.testing.assert_array_equal(read_frames(root / SHARD, 0, 5), read_frames(out / SHARD, 0, 5))
        buckets.let_go()


def test_the_cache_is_looked_through_only_when_it_may_be_full(tmp_path, monkeypatch):
    monkeypatch.setenv("DRIVING_XAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DRIVING_XAI_CACHE_GB", "0.00001")
    monkeypatch.setattr(cache, "_RECENT_S", -1.0)
    folder = tmp_path / "cache/views/0123456789abcdef/memory:++bucket/drives"
    looks, views = [], cache._views
    monkeypatch.setattr(cache, "_views", lambda: looks.append(1) or views())

    def fetch(number: int) -> int:
        cache.make_room(1000)
        with cache.writing(folder / f"{number}") as temporary:
            temporary.write_bytes(bytes(1000))
        os.utime(folder / f"{number}", (number, number))
        return sum(file.stat().st_size for file in folder.iterdir())

    assert [fetch(number) for number in range(10)] == [1000 * (number + 1) for number in range(10)]
    assert len(looks) == 1  # nobody had counted
    assert max(fetch(number) for number in range(10, 20)) <= 10_000
    assert len(looks) < 8
    assert not (folder / "9").exists()
    assert (folder / "19").exists()
    (tmp_path / "cache/locks/bytes").write_bytes(b"damaged")
    assert fetch(20) <= 10_000
    assert str(fetch(21)) == (tmp_path / "cache/locks/bytes").read_text()
