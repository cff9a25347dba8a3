"""What help says: every command and name there is, in the words of the code, without importing what they need."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.readers import ENTRIES
from driving_xai.cli import listing
from driving_xai.cli.commands import COMMANDS, Command, Group
from driving_xai.cli.experiment import _continued
from driving_xai.experiments.registry import EXPERIMENTS
from driving_xai.explain.registry import METHODS
from driving_xai.metrics.registry import METRICS as MEASURES

ROOT = Path(__file__).resolve().parents[3]


def commands() -> Iterator[tuple[str, Command]]:
    """Every command by what is typed, but for the experiments, which have a table of their own."""
    for name, entry in COMMANDS.items():
        if isinstance(entry, Group):
            yield from ((f"{name} {inner}", each) for inner, each in entry.commands.items())
        elif name != "experiment":
            yield name, entry


def function_of(entry: Command) -> Any:
    module, _, attribute = entry.target.partition(":")
    return getattr(importlib.import_module(f"driving_xai.cli.{module}"), attribute)


@pytest.mark.parametrize(
    ("name", "entry"), list(commands()), ids=lambda each: each if isinstance(each, str) else ""
)
def test_help_of_a_command_shows_its_summary_and_an_example(run, name: str, entry: Command) -> None:
    assert inspect.getdoc(function_of(entry)).partition("\n")[0] == entry.summary
    result = run(*name.split(), "--help")
    assert result.exit_code == 0, result.output
    assert f"Example: driving-xai {name}" in result.stdout


def test_help_lists_every_command_with_its_summary(run) -> None:
    shown = " ".join(run("--help").stdout.split())
    for name, entry in COMMANDS.items():
        assert f" {name} {entry.summary}".replace("  ", " ") in shown


def test_help_lists_every_name_by_family(run) -> None:
    methods = {name for family in listing.methods().values() for name in family}
    measures = {name for family in listing.measures().values() for name in family}
    assert (methods, measures) == (set(METHODS), set(MEASURES))
    shown = run("score", "--help").stdout
    words = set(re.split(r"[,\s]+", shown))
    assert methods | measures <= words
    assert all(len(line) <= 80 for line in shown.partition("Methods:")[2].splitlines())
    assert set(ENTRIES) <= set(run("prep", "--help").stdout.split())


@pytest.mark.parametrize(
    "words", [["--help"], ["score", "--help"], ["train", "dino", "--help"], ["prep", "--help"]]
)
def test_no_help_waits_for_a_heavy_library(words: list[str]) -> None:
    heavy = ("torch", "lightning", "cv2", "pandas", "pyarrow", "h5py", "scipy", "rich")
    # Typer itself parses a command's options with pydantic.
    others = ["driving_xai.cli.report"] if words != ["--help"] else ["driving_xai.cli.score", "pydantic"]
    code = (
        "import sys\nfrom driving_xai.cli.commands import app\n"
        f"try: app({words!r})\nexcept SystemExit as end: assert not end.code\n"
        f"print([name for name in {(*heavy, *others)!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def settings_of(entry: Command) -> tuple[type[Any], dict[str, str]] | None:
    """The recipe that a command resolves, and which of its parameters set which setting, from its source."""
    path, _, function = entry.target.partition(":")
    module = ast.parse((ROOT / "driving_xai/cli" / f"{path.replace('.', '/')}.py").read_text())
    homes = {
        alias.name: node.module
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    (found,) = [
        each for each in ast.walk(module) if isinstance(each, ast.FunctionDef) and each.name == function
    ]
    calls = [
        node.args[0]
        for node in ast.walk(found)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "settings.resolve"
    ]
    if not calls:
        return None
    recipe = ast.unparse(calls[-1])
    named = {
        value.id: key.value
        for node in ast.walk(found)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(value, ast.Name) and not key.value.startswith("--")
    }
    return getattr(importlib.import_module(homes[recipe]), recipe), named


NEEDED = {"reader": "udacity-csv", "source": Path("x"), "methods": ("grad-cam",)}


def test_a_default_in_help_is_the_recipe_s() -> None:
    """Help must not wait for the recipe, which imports torch; so it is compared here."""
    compared = 0
    for name, entry in commands():
        function = function_of(entry)
        if (settings := settings_of(entry)) is None:
            continue
        recipe, named = settings
        own = recipe(**{key: value for key, value in NEEDED.items() if key in recipe.__dataclass_fields__})
        parameters = inspect.signature(function, eval_str=True).parameters
        for parameter, setting in named.items():
            (option,) = [
                each for each in parameters[parameter].annotation.__metadata__ if hasattr(each, "help")
            ]
            said = re.search(r"\[default: ([\w.-]+)\]$", option.help or "")
            if said:
                value = own
                for part in setting.split("."):
                    value = getattr(value, part, None)  # Replay has two recipes, with settings apart.
                assert value is None or isinstance(value, bool) or said[1] == str(value), (
                    f"{name}: --{parameter} says {said[0]}, not {value}"
                )
                compared += value is not None
    assert compared > 25


def test_options_stand_in_groups_and_each_once(run) -> None:
    shown = run("score", "--help").stdout
    heads = [line for line in shown.splitlines() if re.fullmatch(r"[A-Z]\w+:", line)]
    assert heads == ["Arguments:", "Options:", "Output:", "Thresholds:", "Settings:", "Machine:"]
    own = shown.partition("\nOptions:")[2].partition("\nOutput:")[0]
    assert "--method" in own
    assert "--device" not in own
    for name, entry in commands():
        listed = re.findall(r"^  (?:-\w, )?--([\w-]+)", run(*name.split(), "--help").stdout, re.M)
        assert len(listed) == len(set(listed)), name
        assert len(listed) > len(inspect.signature(function_of(entry)).parameters) / 2, name


MANNERED = re.compile(r"(^|[.:;] |  )Of |\b(beside|besides|told|wish\w*|worth|judged|what is held)\b", re.M)


def test_every_help_fits_80_columns_in_plain_words(run) -> None:
    experiments = [f"experiment {name}" for name in EXPERIMENTS]
    groups = [name for name, entry in COMMANDS.items() if isinstance(entry, Group)]
    for name in ["", *(name for name, _ in commands()), *groups, "experiment", *experiments]:
        shown = run(*name.split(), "--help").stdout
        assert [line for line in shown.splitlines() if len(line) > 80] == [], name
        assert not (found := MANNERED.search(shown)), f"{name}: {found}"


def test_a_command_that_goes_on_in_a_second_line_is_the_same_for_a_shell() -> None:
    command = (
        """driving-xai experiment tashiro-fig6 shards -o tashiro --set methods='["lime", "a b"]' --set a=b"""
    )
    lines = _continued(command)
    assert "\n" in lines
    assert shlex.split(lines.replace("\\\n", "")) == shlex.split(command)


def test_methods_lists_every_name_and_says_what_fits(run, made) -> None:
    found = json.loads(run("methods", "--json").stdout)
    assert {row["name"] for row in found["methods"]} == set(METHODS)
    assert {row["name"] for row in found["measures"]} == set(MEASURES)
    assert {row["name"]: row["summary"] for row in found["methods"]}["rise"].startswith("The target of")
    fits = {row["name"]: row for row in json.loads(run("methods", made.model, "--json").stdout)["methods"]}
    assert fits["sign-attention"]["fits"]
    assert fits["grad-cam"]["fits"]
    assert not fits["snna"]["fits"]
    assert "Vision Transformer" in fits["snna"]["reason"]
    shown = run("methods", made.model).stdout
    assert max(map(len, (shown + run("methods").stdout).splitlines())) <= 80
    assert re.search(r"yes +grad-cam ", shown)
    assert re.search(r"no +snna +.*Vision Transformer", shown)
    missing = run("methods", made.model.with_name("none"))
    assert (missing.exit_code, missing.stderr.count("\n")) == (3, 1)


def test_ctrl_c_during_the_first_import_is_one_line_and_130(tmp_path: Path) -> None:
    """A typer that takes Ctrl-C while it is imported, in place of the installed one."""
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from driving_xai.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines() == ["driving-xai: interrupted; nothing was written"]


def test_options_of_prep_stand_under_headings(run) -> None:
    shown = run("prep", "--help").stdout
    headings = re.findall(r"^(\S[^\n]*):$", shown, re.MULTILINE)
    expected = ["Arguments", "Options", "Frames and signals", "Faults of the recording"]
    expected += ["Output", "Settings", "Machine"]
    assert [each for each in headings if each in expected] == expected
    faults = shown.partition("Faults of the recording:")[2].partition("Output:")[0]
    assert set(re.findall(r"^  (--[\w-]+)", faults, re.MULTILINE)) == {"--on-bad", "--refuse"}
