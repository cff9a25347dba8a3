"""Every example in the docstrings of both packages runs and prints what it says."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
FLAGS = {
    "data_prep": doctest.IGNORE_EXCEPTION_DETAIL,
    "driving_xai.evaluation": doctest.NORMALIZE_WHITESPACE,
    "driving_xai.metrics": doctest.NORMALIZE_WHITESPACE,
}
"""What a package's examples leave open, beyond what `...` stands for."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = sorted(
    module_of(path)
    for package in ("data_prep", "driving_xai")
    for path in (ROOT / package).rglob("*.py")
    if any(">>> " in line and "+SKIP" not in line for line in path.read_text().splitlines())
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    module = import_module(name)
    flags = doctest.ELLIPSIS
    for package, more in FLAGS.items():
        flags |= more if name.startswith(package) else 0
    # Also what examples of short functions take for granted.
    names = {**vars(module), "torch": torch, "np": np}
    found = doctest.testmod(module, extraglobs=names, optionflags=flags)
    assert found.attempted > 0
    assert found.failed == 0
