"""Fixtures for every test; the shapes in signatures are checked wherever a test calls a function."""

from __future__ import annotations

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("driving_xai", typechecker="shape_checks.check")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m gpu` imports only files that hold such tests: a machine with a GPU may lack peers' libraries."""
    is_test = collection_path.suffix == ".py" and collection_path.name.startswith(("test_", "bench_"))
    if config.option.markexpr == "gpu" and is_test and "mark.gpu" not in collection_path.read_text():
        return True
    return None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real driving data beside the checkout; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real driving data in ../shared/data")
    return SHARED_DATA
