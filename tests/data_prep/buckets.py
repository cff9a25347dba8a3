"""Stores for tests: fsspec's memory, and a real S3 API on the loopback where moto and s3fs are installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

import fsspec
import pytest

from data_prep import cache

KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def let_go() -> None:
    """Ends what this process holds of the cache, as if it had ended itself."""
    while cache._HELD:
        cache._HELD.popitem()[1].close()


class Bucket:
    """A bucket that tests look into and damage; `url` names a folder of it."""

    def __init__(self, protocol: str, server=None) -> None:
        self.url, self.server = f"{protocol}://bucket/drives", server
        self._files = fsspec.filesystem(protocol, use_listings_cache=False)

    def restart(self) -> None:
        """Serves what lay there again, at the same address, after `server.stop()`."""
        _, port = self.server.get_host_and_port()
        self.server = type(self.server)(ip_address="127.0.0.1", port=port, verbose=False)
        self.server.start()

    def names(self) -> list[str]:
        """Of everything below `url`; some may be gone a moment later, while a command runs."""
        found = self._files.find("bucket/drives")
        return [path.lstrip("/").removeprefix("bucket/drives/") for path in found]

    def objects(self) -> dict[str, bytes]:
        """Everything below `url`, while nothing runs."""
        return {name: self._files.cat_file(f"bucket/drives/{name}") for name in self.names()}

    def write(self, name: str, data: bytes) -> None:
        self._files.pipe_file(f"bucket/drives/{name}", data)

    def remove(self, name: str) -> None:
        self._files.rm(f"bucket/drives/{name}")


@contextmanager
def memory() -> Iterator[Bucket]:
    files = fsspec.filesystem("memory", use_listings_cache=False)
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield Bucket("memory")


@contextmanager
def s3() -> Iterator[Bucket]:
    """Skips the test where moto or s3fs is missing."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    import boto3
    import s3fs

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_EC2_METADATA_DISABLED": "true"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        # What moto holds outlives its server.
        urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
        boto3.client("s3").create_bucket(Bucket="bucket")
        bucket = Bucket("s3", server)
        yield bucket
        bucket.server.stop()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        s3fs.S3FileSystem.clear_instance_cache()
