"""The lock on an output folder."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal

import pytest

from data_prep.errors import DataError
from data_prep.lock import LOCK_NAME, exclusive
from data_prep.prepare import PrepConfig, prepare
from tests.data_prep.recordings import challenge


def hold(folder, ready):
    with exclusive(folder):
        ready.set()
        signal.pause()


def enter(folder):
    with exclusive(folder):
        pass


def test_another_process_is_refused_until_the_first_ends_however_it_ends(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path / "out", ready))
    other.start()
    assert ready.wait(10)
    with pytest.raises(DataError, match=r"out: another run is writing here; wait for it or stop it$"):
        enter(tmp_path / "out")
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert (tmp_path / "out" / LOCK_NAME).exists()
    enter(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_lock_is_released_after_a_failure(tmp_path):
    with pytest.raises(KeyError), exclusive(tmp_path):
        raise KeyError
    enter(tmp_path)


def test_a_file_that_its_holder_removed_in_between_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    path, flock, calls = tmp_path / LOCK_NAME, fcntl.flock, []

    def removed_first(file, how):
        calls.append(how)
        if len(calls) == 1:
            path.unlink()
        return flock(file, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with exclusive(tmp_path):
        assert path.exists()
        with pytest.raises(DataError):
            enter(tmp_path)
    assert len(calls) == 3


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_and_said_once(tmp_path, monkeypatch, code):
    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    said = []
    challenge(tmp_path / "drive")
    prepare(
        PrepConfig(reader="udacity-csv", source=tmp_path / "drive", split="test"),
        tmp_path / "out",
        on_note=said.append,
    )
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path / 'out'}: the file system grants no locks (")
    assert not (tmp_path / "out" / ".prep").exists()


def test_other_failures_of_the_lock_are_not_hidden(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(OSError, match="broken"):
        enter(tmp_path)


def test_a_link_to_nowhere_ends(tmp_path):
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "no" / "such")
    with pytest.raises(DataError, match="cannot be made"):
        enter(tmp_path)
