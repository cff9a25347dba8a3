"""experiment from the command line: what there is, what each says of itself, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from driving_xai.cli import settings
from driving_xai.experiments.registry import EXPERIMENTS, imported

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = {
    name: {"--out", "--config", "--set", "--device", "--json", "--help"}
    | {"zhu-table1": {"--checkpoint"}, "zhu-accuracy": {"--folds"}}.get(name, set())
    for name in EXPERIMENTS
}
for _name in ("baumhauer-mnist", "baumhauer-l2x"):
    OPTIONS[_name].remove("--device")
NEEDED = {"zhu-table1": {"checkpoint": "model"}}


def words(text: str) -> str:
    return " ".join(text.split())


def test_every_experiment_is_listed_under_its_paper(run) -> None:
    listed = run("experiment", "--list")
    assert listed.exit_code == 0
    shown = words(run("experiment", "--help").output)
    papers = [line for line in listed.stdout.splitlines() if not line.startswith(" ")]
    assert papers == list(dict.fromkeys(each.paper for each in EXPERIMENTS.values()))
    for name, experiment in EXPERIMENTS.items():
        below = listed.stdout.partition(f"{experiment.paper}\n")[2]
        assert f"  {name:<17} {experiment.summary}" in below
        assert f"{name} {experiment.summary}" in shown.replace("- ", "-")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_explains_itself_and_has_the_options_it_reads(run, name: str) -> None:
    shown = run("experiment", name, "--help")
    assert shown.exit_code == 0, shown.output
    assert words(EXPERIMENTS[name].summary) in words(shown.stdout)
    unbroken = words(shown.stdout.replace("\\\n", ""))
    for each in EXPERIMENTS[name].examples:
        assert words(f"driving-xai experiment {name} {each}") in unbroken
    options = {word for word in shown.stdout.partition("Options:")[2].split() if word.startswith("--")}
    assert options - {"--config;"} == OPTIONS[name]


def settings_of(recipe: Any, prefix: str = "") -> set[str]:
    """Every setting by its dotted name."""
    found = set()
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        found |= {prefix + field.name}
        if is_dataclass(value):
            found |= settings_of(value, f"{prefix}{field.name}.")
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_table_s_targets_and_settings_exist(name: str) -> None:
    experiment = EXPERIMENTS[name]
    recipe = settings.resolve(imported(experiment.recipe), options=NEEDED.get(name))
    assert callable(imported(experiment.run))
    assert {*experiment.unread, *experiment.options} <= settings_of(recipe)


@pytest.mark.parametrize(
    ("name", "unread"), [(name, each) for name, one in EXPERIMENTS.items() for each in one.unread]
)
def test_a_setting_that_only_another_experiment_reads_is_refused(
    run, tmp_path, name: str, unread: str
) -> None:
    for setting in (unread, f"{unread}.x"):
        result = run("experiment", name, tmp_path, "-o", tmp_path / "out", "--set", f"{setting}=1")
        assert result.exit_code == 2
        assert f"--set {setting}: {name} does not read it" in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_listing_imports_no_experiment() -> None:
    heavy = (
        "torch",
        "numpy",
        "scipy",
        "matplotlib",
        "driving_xai.experiments.an",
        "driving_xai.experiments.tashiro",
    )
    code = (
        "import sys\nfrom driving_xai.cli import app\n"
        "for words in (['experiment', '--list'], ['experiment', 'an-table3', '--help']):\n"
        "    try: app(words)\n    except SystemExit as end: assert not end.code\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--set", "methods_every=15"), 2, "expected a multiple of score_every, 10"),
        (("--set", "run=3"), 2, "did you mean runs?"),
        (("--set", 'roles=["loud"]'), 2, "expected one of"),
        ((), 3, "no manifest"),
    ],
    ids=["cannot be compared", "typing error", "unknown role", "no shards"],
)
def test_what_cannot_run_is_one_line_and_a_code(run, tmp_path, arguments, code, message) -> None:
    result = run("experiment", "tashiro-fig6", tmp_path, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("zhu-table1", "x", "-o", "y"), 2, "checkpoint is not set; give its option"),
        (("zhu-table1", "x", "-o", "y", "--checkpoint", "none"), 3, "none is no checkpoint"),
        (("zhu-accuracy", "x", "-o", "y", "--checkpoint", "m"), 2, "No such option: --checkpoint"),
        (("baumhauer-mnist", "-", "-o", "y", "--device", "cpu"), 2, "No such option: --device"),
        (("an-table3", "-"), 2, "Missing option '--out'"),
        (("tashiro-fig8", "x", "-o", "y"), 2, "No such command 'tashiro-fig8'; did you mean tashiro-fig"),
    ],
)
def test_wrong_usage_is_one_line(run, words, code, message) -> None:
    result = run("experiment", *words)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
