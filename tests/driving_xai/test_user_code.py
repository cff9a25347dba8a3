"""The user's own code by `module:name`: a model, an explainer and a metric meet one set of messages."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from driving_xai.cli import app
from driving_xai.errors import CheckpointError, OptionError
from driving_xai.explain.adapters import load_explainer
from driving_xai.metrics.registry import build
from driving_xai.models.foreign import load
from driving_xai.user_code import imported

MINE = """
class Outer:
    inner = 7

class Cross:
    def __init__(self, corner=1):
        raise RuntimeError("no such\\ncorner")

CONSTANT = 3
"""
FAULTS = [
    ("nowhere:Cross", "nowhere:Cross: no module nowhere in .* nor installed; check the name, or start there"),
    (
        "mine.deep:Cross",
        r"importing mine\.deep raised ModuleNotFoundError: .*; correct the code|no module mine\.deep",
    ),
    ("mine:Crosss", "mine:Crosss: mine has no Crosss; did you mean Cross\\?"),
    ("mine:zzzz", "mine:zzzz: mine has no zzzz; it has CONSTANT, Cross, Outer"),
    ("mine:Outer.outer", "Outer has no outer; it has inner"),
    (
        "broken:Cross",
        r"importing broken raised ZeroDivisionError: .* \(broken\.py, line 3\); correct the code",
    ),
    ("needs:Cross", r"importing needs raised ModuleNotFoundError: .*a_library.* \(needs\.py, line 1\)"),
    ("typo:Cross", r"importing typo raised SyntaxError: .* \(typo\.py, line 2\); correct the code"),
    ("leaves:Cross", r"importing leaves raised SystemExit: 3 \(leaves\.py, line 2\)"),
    ("mine:CONSTANT", "mine:CONSTANT is a int; expected a (function|class|subclass)"),
    (
        "mine:Cross",
        r"raised RuntimeError: no such \(mine\.py, line 7\)|is a class Cross; expected a subclass of",
    ),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of somebody with code of his own, some of it broken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    files = {
        "mine": MINE,
        "broken": "import torch\n\nvalue = 1 / 0\n",
        "needs": "import a_library_that_is_not_here\n",
        "typo": "import sys\ndef cross(:\n",
        "leaves": "import sys\nsys.exit(3)\n",
    }
    for name, text in files.items():
        Path(f"{name}.py").write_text(text)
    yield tmp_path
    for name in files:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("text", "message"), FAULTS)
@pytest.mark.parametrize(
    ("use", "kind"), [(load, CheckpointError), (load_explainer, ValueError), (build, ValueError)]
)
def test_each_fault_is_the_same_line_for_models_explainers_and_metrics(
    folder, text, message, use, kind
) -> None:
    with pytest.raises(kind, match=message) as caught:
        use(text)
    assert "\n" not in str(caught.value)


def test_names_with_dots_are_found_inside_classes(folder) -> None:
    assert imported("mine:Outer.inner") == 7


def test_an_option_that_an_explainer_of_ones_own_does_not_have_is_a_usage_error(folder) -> None:
    with pytest.raises(OptionError, match=r"explainer 'mine:Cross': .*unexpected keyword argument 'side'"):
        load_explainer("mine:Cross", side=2)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("methods {}", 3),
        ("score {} shards --method gradient -o scores", 3),
        ("score mine:model shards --method {} -o scores", 2),
    ],
)
def test_from_the_command_line_a_fault_is_one_line(folder, words, code) -> None:
    for text, message in FAULTS[:6]:
        result = CliRunner().invoke(app, words.format(text).split())
        assert result.exit_code == code, result.output
        assert result.stderr.count("\n") == 1
        if "model" not in words:
            assert re.search(message, result.stderr)
