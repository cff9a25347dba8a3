"""Every example in the docstrings of metrics and evaluation runs, and every public metric has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

from driving_xai import evaluation, metrics

MODULES = [
    f"{package.__name__}.{found.name}"
    for package in (metrics, evaluation)
    for found in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    # Also what examples of our shortest functions take for granted.
    names = {
        **vars(module),
        "torch": importlib.import_module("torch"),
        "np": importlib.import_module("numpy"),
    }
    found = doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0


@pytest.mark.parametrize("name", metrics.__all__)
def test_public_names_are_there_and_say_how_they_are_used(name):
    found = getattr(metrics, name)
    if inspect.isclass(found) and not inspect.isabstract(found):
        assert "Args:" in found.__doc__ or name == "Masking"
        assert ">>> " in found.__doc__
