"""Tests that need a GPU can be collected where peers' libraries are missing."""

from __future__ import annotations

import ast
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import pytest_ignore_collect

ROOT = Path(__file__).resolve().parent
PEERS = {
    "captum",
    "lime",
    "lxt",
    "playwright",
    "pytorch_grad_cam",
    "quantus",
    "sklearn",
    "torchcam",
    "zennit",
}


def _unconditional_imports(path: Path) -> Iterator[str]:
    """Top names of what the module imports first of all, outside `try`, `with` and functions."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).split(".")[0]


def _chosen(expression: str) -> set[Path]:
    config = Namespace(option=Namespace(markexpr=expression))
    files = {*ROOT.rglob("test_*.py"), *ROOT.rglob("bench_*.py")}
    return {path for path in files if not pytest_ignore_collect(path, config)}


def test_only_files_with_gpu_tests_are_imported_for_them_and_those_need_no_peer() -> None:
    on_gpu = _chosen("gpu")
    assert {path.name for path in on_gpu} >= {"test_cuda.py", "test_kernels.py", "test_gradient.py"}
    assert len(on_gpu) < 10
    for path in (*on_gpu, *ROOT.rglob("conftest.py")):
        assert not PEERS & set(_unconditional_imports(path)), path


@pytest.mark.parametrize("expression", ["", "not slow and not gpu", "bench"])
def test_every_file_is_looked_at_for_other_tests(expression: str) -> None:
    assert len(_chosen(expression)) > 100
