"""The user's own code, imported by `module:name` from the working directory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def importable() -> Iterator[None]:
    """The working directory first, so that the user's modules are found, and last from then on, so that what
    they import later is found too and nothing of ours is hidden. A console script does not search there."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)
