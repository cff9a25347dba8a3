"""Every public metric says how it is used."""

from __future__ import annotations

import inspect

import pytest

from driving_xai import metrics


@pytest.mark.parametrize("name", metrics.__all__)
def test_public_names_are_there_and_say_how_they_are_used(name):
    found = getattr(metrics, name)
    if inspect.isclass(found) and not inspect.isabstract(found):
        assert "Args:" in found.__doc__ or name in ("EvalBatch", "Masking", "Quantity", "RankedMaps")
        assert ">>> " in found.__doc__
