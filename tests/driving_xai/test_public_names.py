"""What the public interface names is public itself, and `dir` shows it."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator

import pytest

import driving_xai as dx

PARTS = ("explain", "metrics", "data", "targets", "viz", "replay", "report", "types", "errors")
PUBLIC = {
    id(value): name
    for part in (dx, *(getattr(dx, each) for each in PARTS))
    for name in getattr(part, "__all__", vars(part))
    if not isinstance(value := getattr(part, name), types.ModuleType)
}
INNER = {"Vehicle", "Manifest", "Sanity", "Source", "Checked"}
"""Of records that `read` and `open` return, and the base of configurations; nobody makes or names one."""


def mentioned(found: object) -> Iterator[object]:
    """The classes in a public name's bases and in the signatures by which it is called or extended."""
    if inspect.isclass(found):
        yield from found.__mro__[1:]
        functions = [
            each
            for name, each in vars(found).items()
            if inspect.isfunction(each)
            and (name == "__call__" or getattr(each, "__isabstractmethod__", False))
        ]
    else:
        functions = [found] if inspect.isfunction(found) else []
    for function in functions:
        for annotation in function.__annotations__.values():
            for word in re.findall(r"\b[A-Z]\w+\b", str(annotation)):
                value = function.__globals__.get(word)
                yield value
                yield from typing.get_args(value)


@pytest.mark.parametrize("part", ["", *PARTS])
def test_classes_of_public_signatures_and_bases_are_public(part: str) -> None:
    owner = getattr(dx, part) if part else dx
    ours = {
        f"{name} mentions {each.__module__}.{each.__qualname__}"
        for name in getattr(owner, "__all__", vars(owner))
        for each in mentioned(getattr(owner, name))
        if inspect.isclass(each)
        and each.__module__.startswith(("driving_xai", "data_prep"))
        and id(each) not in PUBLIC
        and not each.__name__.startswith("_")
        and each.__name__ not in INNER
    }
    assert not ours


def test_dir_shows_all_public_names_and_the_version() -> None:
    assert set(dir(dx)) == {*dx.__all__, "__version__"}
    for part in ("explain", "metrics", "data", "viz", "replay", "report"):
        assert set(dir(getattr(dx, part))) >= set(getattr(dx, part).__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", dx.__version__)


def test_names_that_users_write_are_there() -> None:
    assert isinstance(dx.explain.GradCAM(), dx.explain.ClassActivationMap)
    assert issubclass(dx.explain.SNNA, dx.explain.AttentionExplainer)
    with dx.explain.cells_kept() as kept:
        assert kept is not None
    assert dx.report.PageConfig().frames == 3
    assert dx.Checkpoint.__name__ == "Checkpoint"
