"""Settings of glibc's allocator for work on many edited frames. Other C libraries are left as they are."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

# malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20


def keep_freed_memory() -> None:
    """Lets the process keep the buffers that it frees.

    The buffers of a batch of edited frames are asked for again by the next batch. By default their pages go
    back to the system and are faulted in anew: a quarter of the scoring's time.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, 512 << 20)


def release_fragments() -> None:
    """Gives free pages between buffers in use back to the system, in some 20 ms.

    With glibc 2.36 the first two minutes of a drive left 2 GB of holes between buffers in use; compare
    https://sourceware.org/bugzilla/show_bug.cgi?id=30723 on aligned buffers.
    """
    malloc_trim = _of_libc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_libc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None)
