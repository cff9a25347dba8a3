"""Checks the shapes that signatures state, wherever the tests call a function of driving_xai.

Only annotations that are jaxtyping's are checked, alone, in a union or in a tuple: protocols and other
types are mypy's, and stand-ins that break them are what tests are made with.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import AbstractArray


def check(function: Callable) -> Callable:
    """Wraps a function so that arguments and result of another shape raise TypeError."""
    signature = inspect.signature(function)
    hints: dict[str, Any] | None = None

    @functools.wraps(function)
    def checked(*arguments: Any, **keywords: Any) -> Any:
        nonlocal hints
        hints = _hints(function) if hints is None else hints
        for name, value in signature.bind(*arguments, **keywords).arguments.items():
            _require(f"argument {name}", value, hints.get(name))
        result = function(*arguments, **keywords)
        _require("the result", result, hints.get("return"))
        return result

    return checked


def _hints(function: Callable) -> dict[str, Any]:
    """The annotations that can be evaluated; names of type checking only cannot, and are no arrays."""
    found = {}
    for name, hint in getattr(function, "__annotations__", {}).items():
        try:
            found[name] = eval(hint, function.__globals__) if isinstance(hint, str) else hint
        except NameError:
            continue
    return found


def _require(what: str, value: Any, hint: Any) -> None:
    if not _fits(value, hint):
        shape = getattr(value, "shape", None)
        raise TypeError(f"{what}: {type(value).__name__} of shape {shape} is no {hint}")


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return isinstance(value, hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        arrays = [each for each in inner if isinstance(each, type) and issubclass(each, AbstractArray)]
        others = len(arrays) < len(inner)
        return (
            not arrays or (others and not _is_array(value)) or any(isinstance(value, each) for each in arrays)
        )
    if origin is tuple and isinstance(value, tuple) and len(inner) == len(value) and Ellipsis not in inner:
        return all(_fits(one, each) for one, each in zip(value, inner, strict=True))
    return True


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor)
