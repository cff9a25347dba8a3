"""The documents build as a site without a warning, with a page for each family and the API."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from driving_xai.explain.registry import FAMILIES, METHODS
from tests.docs.documents import ROOT

CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a process of its own: mkdocs and its plugins warn of their own future."""
    pytest.importorskip("mkdocstrings", reason="needs the docs extra")
    pytest.importorskip("material", reason="needs the docs extra")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(CONFIG),
        "--site-dir",
        str(out),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out


def test_every_method_has_its_section(site: Path) -> None:
    for family, names in FAMILIES.items():
        page = (site / "methods" / f"{family.replace(' ', '-')}.html").read_text()
        for name in names:
            assert f"<code>{name}</code>" in page
            assert METHODS[name].target.replace(":", ".") in page


def test_the_api_has_signatures_and_docstrings(site: Path) -> None:
    page = (site / "api" / "explain.html").read_text()
    assert 'id="driving_xai.explain.cam.GradCAM"' in page
    assert "Says how much each pixel of each frame matters for a target." in page
    first = (site / "api" / "index.html").read_text()
    for name in (
        "driving_xai.models.foreign.load",
        "driving_xai.models.wrap.wrap",
        "driving_xai.evaluation.api.evaluate",
    ):
        assert f'id="{name}"' in first


def test_it_can_be_searched_and_shows_the_notebook(site: Path) -> None:
    assert "integrated-gradients" in (site / "search" / "search_index.json").read_text()
    assert "data:image/png;base64," in (site / "quickstart.html").read_text()
