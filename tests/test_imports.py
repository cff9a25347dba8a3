"""Arrows point down: who may import whom, read from every file's syntax."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "data_prep").rglob("*.py"), *(ROOT / "driving_xai").rglob("*.py")])

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"types", "errors", "unfinished", "user_code", "fills"}),
    frozenset({"models", "targets", "checkpoint", "perturb"}),
    frozenset({"data"}),
    frozenset({"explain"}),
    frozenset({"metrics", "viz"}),
    frozenset({"evaluation"}),
    frozenset({"training", "replay", "report", "experiments"}),
    frozenset({"demo", "doctor"}),
    frozenset({"cli", "__main__"}),
)
"""The parts of driving_xai, lowest first. Within a layer parts may use each other."""

READS_SHARDS = {
    "data",
    "evaluation",
    "training",
    "replay",
    "report",
    "experiments",
    "demo",
    "cli",
}
"""Parts that may import data_prep beyond its errors, records, documents, places and typed values and the writing of whole files."""


def part(module: str) -> str:
    """`driving_xai.models.steering` -> `models`; the package itself is a part that imports nothing by itself."""
    return module.split(".")[1] if "." in module else ""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str) -> Iterator[str]:
    """Every module that a text imports, anywhere in it, with the names taken from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def layer(name: str) -> int:
    found = [height for height, parts in enumerate(LAYERS) if name in parts]
    assert found, f"driving_xai.{name} is in no layer of this test; add it to the one it belongs to"
    return found[0]


def is_upward(importer: str, imported: str) -> bool:
    """Whether a part of driving_xai reaches for one above itself."""
    return part(importer) != part(imported) and layer(part(imported)) > layer(part(importer))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path: Path) -> None:
    module = module_of(path)
    found = list(imports(path.read_text()))
    if module.startswith("data_prep"):
        wrong = [
            name
            for name in found
            if name.split(".")[0] in ("driving_xai", "torch", "torchvision", "lightning")
        ]
    elif module == "driving_xai":
        wrong = [name for name in found if name != "lazy_loader"]
    else:
        wrong = [name for name in found if name.startswith("driving_xai.") and is_upward(module, name)]
        if part(module) not in READS_SHARDS:
            names = ("documents", "errors", "geometry", "places", "schema", "shards.atomic", "values")
            allowed = tuple(f"data_prep.{name}" for name in names)
            wrong += [
                name for name in found if name.startswith("data_prep.") and not name.startswith(allowed)
            ]
    assert not wrong, f"{module} must not import {', '.join(wrong)}"


@pytest.mark.parametrize(
    ("importer", "imported", "upward"),
    [
        ("driving_xai.models.steering", "driving_xai.types.Frames", False),
        ("driving_xai.types", "driving_xai.models.steering", True),
        ("driving_xai.explain.cam", "driving_xai.training.steering", True),
        ("driving_xai.training.steering", "driving_xai.cli.main", True),
        ("driving_xai.explain.cam", "driving_xai.metrics.curves", True),
        ("driving_xai.evaluation.run", "driving_xai.explain", False),
    ],
)
def test_the_rule_itself_tells_up_from_down(importer: str, imported: str, upward: bool) -> None:
    assert is_upward(importer, imported) is upward


def test_an_import_inside_a_function_is_seen() -> None:
    assert list(imports("def f():\n    from driving_xai import cli\n    import torch.nn\n")) == [
        "driving_xai.cli",
        "torch.nn",
    ]


def test_help_needs_no_heavy_library() -> None:
    """What makes `driving-xai --help` quick, without measuring time."""
    heavy = ("torch", "lightning", "cv2", "av", "pandas", "pyarrow", "h5py", "scipy", "rich", "pydantic")
    code = f"import sys; import driving_xai.cli.commands; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


SHARED_BY_COMMANDS = (
    "console",
    "epochs",
    "listing",
    "models",
    "option_groups",
    "options",
    "quality_table",
    "settings",
    "tables",
    "training",
)
"""Modules of the command line that are no command."""


@pytest.mark.parametrize(
    "path", sorted((ROOT / "driving_xai" / "cli").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_command_imports_another(path: Path) -> None:
    own = path.stem
    apart = {"commands"} if own == "__init__" else set()
    for name in imports(path.read_text()):
        if name.startswith("driving_xai.cli."):
            part = name.split(".")[2]
            assert part in SHARED_BY_COMMANDS or part in apart, f"{own} must not import {name}"


DISTRIBUTIONS: Mapping[str, str] = {
    "PIL": "pillow",
    "annotated_types": "annotated-types",
    "cv2": "opencv-python-headless",
    "lazy_loader": "lazy-loader",
    "pytorch_grad_cam": "grad-cam",
    # Comes with torch where a GPU can use it; what imports it does without, see `explain.vit.fused`.
    "triton": "torch",
    "rerun": "rerun-sdk",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
"""Where a module has another name than the distribution that brings it."""

USED_BY_NAME_ONLY = {"tensorboard": "Lightning's TensorBoardLogger imports it"}


def distribution(requirement: str) -> str:
    return requirement.split(">")[0].split(";")[0].strip()


def test_what_is_imported_is_declared_and_what_is_declared_is_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {distribution(each) for each in project["dependencies"]}
    extras = {distribution(each) for extra in project["optional-dependencies"].values() for each in extra}
    tops = {name.split(".")[0] for path in FILES for name in imports(path.read_text())}
    third_party = tops - set(sys.stdlib_module_names) - {"driving_xai", "data_prep", "__future__"}
    used = {DISTRIBUTIONS.get(name, name) for name in third_party}
    assert used <= declared | extras, f"import without declaring: {sorted(used - declared - extras)}"
    idle = declared - used - set(USED_BY_NAME_ONLY)
    assert not idle, f"declared and never imported: {sorted(idle)}"
