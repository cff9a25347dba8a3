"""What is told to the C library's allocator."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from driving_xai.evaluation import allocator


def test_glibc_is_told_its_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, ...]] = []
    libc = SimpleNamespace(
        mallopt=lambda *args: told.append(args), malloc_trim=lambda *args: told.append(args)
    )
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: libc)
    allocator.keep_freed_memory()
    allocator.release_fragments()
    # M_MMAP_THRESHOLD may not exceed half of a thread's heap, 64 MB.
    assert told == [(-3, 32 << 20), (-1, 512 << 20), (0,)]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: SimpleNamespace())
    allocator.keep_freed_memory()
    allocator.release_fragments()
