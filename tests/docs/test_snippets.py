"""Every command and every piece of Python in README and the documents runs, on short data."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from driving_xai.explain.registry import METHODS
from driving_xai.metrics.registry import METRICS
from tests.docs.conftest import MADE_FIRST, run
from tests.docs.documents import DOCUMENTS, NOT_RUN, ROOT, blocks, commands, reason_not_to_run

LANGUAGES = {"sh", "python", "toml", "text"}
NOT_WHOLE = {"docs/development.md": "pieces of classes to be written"}
"""Documents whose Python is compiled only."""


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


LONG = ("docs/tour.md", "docs/report.md", "docs/replay.md", "docs/guides/auditor.md")
"""Documents whose commands take a quarter of a minute and more."""


@pytest.mark.parametrize(
    "document",
    [pytest.param(each, marks=pytest.mark.slow if name(each) in LONG else ()) for each in DOCUMENTS],
    ids=name,
)
def test_what_a_document_shows_runs(document: Path, folder: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks(document):
        where = f"{document}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: say what the block is: {', '.join(sorted(LANGUAGES))}"
        if block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(document), "exec")
            if name(document) not in NOT_WHOLE:
                exec(code, names)
        elif block.language == "sh":
            for command in commands(block):
                if reason_not_to_run(command) is None and command not in MADE_FIRST:
                    assert command.startswith("driving-xai "), f"{where}: {command} is run by no test"
                    run(command)


def test_each_exception_is_used() -> None:
    found = [
        line
        for each in DOCUMENTS
        for block in blocks(each)
        if block.language == "sh"
        for line in commands(block)
    ]
    idle = [start for start in NOT_RUN if not any(line.startswith(start) for line in found)]
    assert not idle


def test_what_runs_once_is_what_readme_shows() -> None:
    found = {
        line for block in blocks(ROOT / "README.md") if block.language == "sh" for line in commands(block)
    }
    shown = {
        line
        for block in blocks(ROOT / "docs" / "tour.md")
        if block.language == "sh"
        for line in commands(block)
    }
    assert set(MADE_FIRST) <= found | shown


def test_plain_text_hides_no_command() -> None:
    for document in DOCUMENTS:
        for block in blocks(document):
            if block.language == "text":
                hidden = [
                    line
                    for line in block.text.splitlines()
                    if line.startswith("driving-xai ") and "[" not in line
                ]
                assert not hidden, f"{document}:{block.line}: mark it as sh"


def test_readme_lists_every_method_and_metric() -> None:
    text = (ROOT / "README.md").read_text()
    assert not [each for each in (*METHODS, *METRICS) if f"`{each}`" not in text]
