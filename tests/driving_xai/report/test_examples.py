"""The examples in the docstrings of the report, the comparisons and the thresholds run."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from driving_xai.evaluation import gates
from driving_xai.metrics import comparison
from driving_xai.report import drawing, edited, words


@pytest.mark.parametrize(
    "module", [comparison, gates, drawing, edited, words], ids=lambda each: each.__name__
)
def test_examples(module: ModuleType) -> None:
    done = doctest.testmod(module)
    assert done.attempted > 0
    assert done.failed == 0
