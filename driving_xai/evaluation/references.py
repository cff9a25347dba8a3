"""What measures compare with: the name that results keep, and the one word that people read and write.

In files the prediction for the unedited frame is `clean`, which is part of their format; everywhere else it is
`unmodified`.
"""

from __future__ import annotations

from collections.abc import Mapping

_SPOKEN: Mapping[str, str] = {"clean": "unmodified"}


def spoken(reference: str) -> str:
    """A reference of results as people read it.

    Example:
        >>> spoken("clean"), spoken("truth")
        ('unmodified', 'truth')
    """
    return _SPOKEN.get(reference, reference)


def as_saved(word: str) -> str:
    """A reference as results name it; the name itself is taken too.

    Example:
        >>> as_saved("unmodified"), as_saved("clean")
        ('clean', 'clean')
    """
    return next((name for name, known in _SPOKEN.items() if known == word), word)
