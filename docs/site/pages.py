"""Pages that mkdocs makes from code: methods by family, the API, the notebook; and links out of the site."""

from __future__ import annotations

import html
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from driving_xai.explain.registry import FAMILIES, METHODS, options_of, summary
from driving_xai.metrics.registry import FAMILIES as METRIC_FAMILIES
from driving_xai.metrics.registry import metric_class

DOCS = Path(__file__).resolve().parents[1]
API = {
    "driving_xai": ("load", "Checkpoint", "wrap", "WrappedModel", "evaluate", "Evaluation"),
    "explain": None,
    "metrics": None,
    "data": None,
    "targets": ("left", "right", "magnitude", "predicted", "output", "by_name"),
    "viz": None,
    "replay": None,
    "report": None,
    "types": (),
    "errors": (),
}
"""The public parts, with their names; None takes all that the stub exports, nothing the whole module."""
CHAPTERS: dict[str, tuple[str, ...]] = {
    "attention of the model": (
        "Learned attention",
        "Causal filtering",
        "Bounded logit attention",
        "Maps that a network writes itself: LABN and lambda attention",
    ),
    "class activation maps": ("Grad-CAM, for a regressor too", "The class activation maps"),
    "gradients": ("Gradients with respect to the pixels", "The heavier side"),
    "perturbation": ("Hiding parts of the frame",),
    "feature maps": ("VisualBackProp",),
    "vision transformers": ("Attention of Vision Transformers",),
    "baselines": ("Controls",),
}
"""The sections of docs/methods.md that describe a family of explainers; the others are of metrics and all runs."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is made from code."""
    made = dict((*_methods(), *_api(), ("quickstart.md", _notebook())))
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    config.nav = [_filled(entry, files) for entry in config.nav]
    return files


def on_page_markdown(markdown: str, **of_page: object) -> str:
    """Links to files that no page shows become plain names; the repository holds them."""
    return re.sub(
        r"\[([^\]]+)\]\(((?:\.\./)+(?:driving_xai|data_prep|tests|README)[^)]*)\)", r"`\1`", markdown
    )


def _filled(entry: dict, files: Files) -> dict:
    """A folder of the navigation as its pages."""
    ((title, target),) = entry.items()
    if not isinstance(target, str) or not target.endswith("/"):
        return entry
    pages = sorted(file.src_uri for file in files.documentation_pages() if file.src_uri.startswith(target))
    first = [page for page in pages if page.endswith(("README.md", "index.md"))]
    rest = [page for page in pages if page not in first]
    if target == "methods/":
        first, rest = ["methods.md", *first], rest
    return {title: [*first, *rest]}


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def _sections() -> dict[str, str]:
    text = (DOCS / "methods.md").read_text()
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _costs() -> dict[str, list[str]]:
    """The row of each name in the table of costs."""
    rows = re.findall(r"^\| (`.*)\|$", _sections()["What each method and measure costs"], re.MULTILINE)
    found: dict[str, list[str]] = {}
    for row in rows:
        cells = [cell.strip() for cell in row.split(" | ")]
        for name in re.findall(r"`([^`]+)`", cells[0]):
            found.setdefault(name, cells[1:4])
    return found


def _methods() -> Iterator[tuple[str, str]]:
    """A page for each family of explainers: names, classes, options, cost, then the section with the equations."""
    sections, costs = _sections(), _costs()
    for family, names in FAMILIES.items():
        lines = [f"# {family.capitalize()}", ""]
        for name in names:
            lines += [f"## `{name}`", "", _sentence(summary(name)), "", *_facts(name, costs.get(name)), ""]
        for title in CHAPTERS[family]:
            lines += [f"## {title}", _deeper(sections[title])]
        yield f"methods/{_slug(family)}.md", "\n".join(lines)
    yield "methods/metrics.md", "\n".join(_metrics())


def _facts(name: str, cost: list[str] | None) -> list[str]:
    options = ", ".join(f"`{option}`" for option in options_of(name)) or "none"
    lines = [f"- Class: `{METHODS[name].target.replace(':', '.')}`", f"- Options: {options}"]
    if cost:
        passes = [f"forward passes {cost[0]}", f"backward passes {cost[1]}", f"extra memory {cost[2]}"]
        lines.append(f"- Cost: {'; '.join(passes[: len(cost)])}")
    return lines


def _metrics() -> Iterator[str]:
    yield "# Metrics"
    for family, names in METRIC_FAMILIES.items():
        yield f"\n## {family.capitalize()}\n"
        for name in names:
            first = (inspect.getdoc(metric_class(name)) or "").partition("\n")[0]
            yield f"- `{name}`: {_sentence(first)}"
    yield "\nEquations, deviations and tests are in [methods](../methods.md)."


def _sentence(text: str) -> str:
    return html.escape(text, quote=False)


def _deeper(text: str) -> str:
    """A section one folder down."""
    text = re.sub(r"\]\((?!http|#|\.\./)([^)]+)\)", r"](../\1)", text)
    return re.sub(r"\]\(#([^)]+)\)", r"](../methods.md#\1)", text)


def _api() -> Iterator[tuple[str, str]]:
    for part, names in API.items():
        module = part if part == "driving_xai" else f"driving_xai.{part}"
        names = _exported(part) if names is None else [(name, f"{module}.{name}") for name in names]
        lines = [f"# {'dx' if part == 'driving_xai' else 'dx.' + part}", ""]
        if part == "driving_xai":
            names = [
                (name, target)
                for name, target in _stub(DOCS.parent / "driving_xai" / "__init__.pyi")
                if name in API[part]
            ]
        lines += [f"::: {target}\n" for _, target in names] or [f"::: {module}\n"]
        yield f"api/{'index' if part == 'driving_xai' else part}.md", "\n".join(lines)


def _exported(part: str) -> list[tuple[str, str]]:
    return _stub(DOCS.parent / "driving_xai" / part / "__init__.pyi", part)


def _stub(path: Path, part: str | None = None) -> list[tuple[str, str]]:
    """The names of a stub with where each is defined."""
    root = "driving_xai" if part is None else f"driving_xai.{part}"
    found = re.findall(r"^from \.([\w.]+) import (\w+) as", path.read_text(), re.MULTILINE)
    return [(name, f"{root}.{module}.{name}") for module, name in found]


def _notebook() -> str:
    """The notebook's cells with their texts and pictures."""
    lines = []
    for cell in json.loads((DOCS / "quickstart.ipynb").read_text())["cells"]:
        source = "".join(cell["source"])
        lines += [source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```", ""]
        for output in cell.get("outputs", ()):
            lines += [_output(output), ""]
    return "\n".join(lines)


def _output(output: dict) -> str:
    data = output.get("data", {"text/plain": output.get("text", [])})
    if "image/png" in data:
        return f'<img alt="Output of the cell above" src="data:image/png;base64,{data["image/png"]}">'
    if "text/html" in data:
        return "".join(data["text/html"])
    return "```text\n" + "".join(data["text/plain"]) + "\n```"
