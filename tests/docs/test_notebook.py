"""The notebook runs from top to bottom, and is stored small."""

from __future__ import annotations

import json

import pytest

from tests.docs.documents import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    table = names["found"].table()
    assert set(table["method"]) == {"redness", "grad-cam", "random", "centre-prior"}
    assert table["mean"].between(0, 1).all()


def test_every_cell_was_run_before_it_was_stored() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 250_000
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {kind for cell in code for output in cell["outputs"] for kind in output.get("data", {})}
    assert "image/png" in kinds
    assert not [cell for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
