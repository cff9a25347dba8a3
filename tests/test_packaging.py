"""The distribution and the files around it: what is declared holds, and they agree with each other."""

from __future__ import annotations

import re
import subprocess
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, entry_points, requires
from pathlib import Path

import pytest

import driving_xai

ROOT = Path(__file__).resolve().parents[1]
TOP = {
    *("pyproject.toml", "driving_xai", "data_prep", "tests", "docs", "Dockerfile", "README.md"),
    *("LICENSE", "Makefile", ".ci", ".gitignore", "constraints.txt", "CITATION.cff"),
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    return listed.stdout.splitlines()


def name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement).group().lower()


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("==") for line in lines)


def test_nothing_but_the_agreed_lies_at_the_top() -> None:
    assert {path.split("/")[0] for path in tracked()} <= TOP


def test_the_console_script_is_the_command_line() -> None:
    (script,) = [each for each in entry_points(group="console_scripts") if each.name == "driving-xai"]
    from driving_xai.cli import main

    assert script.load() is main


def test_every_direct_dependency_has_one_tested_version() -> None:
    wanted = [*PROJECT["project"]["dependencies"]]
    wanted += [
        each
        for group in ("cluster", "test", "dev")
        for each in PROJECT["project"]["optional-dependencies"][group]
    ]
    assert {name(requirement) for requirement in wanted} <= set(pins())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def hashed() -> dict[str, str]:
    """The versions of the container's libraries; every line has a hash."""
    lines = [line for line in (ROOT / ".ci/requirements.txt").read_text().splitlines() if line[0] != "#"]
    found = [re.fullmatch(r"([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    return {match[1]: match[2] for match in found}


def brought_by(requirements: list[str]) -> set[str]:
    """The packages that these bring, and what those bring, as far as they are installed."""
    packaging = pytest.importorskip("packaging.requirements")
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [(text, "") for text in requirements]
    while waiting:
        text, extra = waiting.pop()
        wanted = packaging.Requirement(text)
        if (text, extra) in seen or (wanted.marker and not wanted.marker.evaluate({"extra": extra})):
            continue
        seen.add((text, extra))
        with suppress(PackageNotFoundError):  # an extra that this environment lacks
            waiting += [(each, name) for each in requires(wanted.name) or [] for name in ("", *wanted.extras)]
            found.add(normal(wanted.name))
    return found


def test_everything_that_is_installed_is_pinned() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["test"], *extras["dev"], *extras["cluster"]]
    pinned = {normal(name): version for name, version in pins().items()}
    assert brought_by(wanted) <= pinned.keys()


def test_the_container_takes_the_pinned_versions_by_their_hashes() -> None:
    pinned = {normal(name): version for name, version in pins().items()}
    assert hashed().items() <= pinned.items()
    assert {normal(name(each)) for each in PROJECT["project"]["dependencies"]} <= hashed().keys()
    text = (ROOT / "Dockerfile").read_text()
    installs = re.findall(r"pip install (.+)$", text, re.MULTILINE)
    assert installs
    assert all("--require-hashes" in each or "--no-build-isolation" in each for each in installs)
    assert {normal(name(each)) for each in PROJECT["build-system"]["requires"]} <= hashed().keys()


def test_the_inventory_of_licences_is_that_of_the_container() -> None:
    text = (ROOT / "docs" / "THIRD-PARTY.md").read_text()
    rows = re.findall(r"^\| ([\w.-]+) \| (\d[\w.]*) \| \S.* \|$", text, re.MULTILINE)
    assert {normal(package): version for package, version in rows} == hashed()


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {driving_xai.__version__}\n" in text
    assert f"\ntitle: {PROJECT['project']['name']}\n" in text


def test_tested_versions_satisfy_the_bounds() -> None:
    packaging = pytest.importorskip("packaging.requirements")
    for text in requires("driving-xai"):
        requirement = packaging.Requirement(text)
        pinned = pins().get(requirement.name.lower())
        on_this_python = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if pinned and on_this_python:
            assert requirement.specifier.contains(pinned), text


@pytest.mark.parametrize(
    "file", [".ci/requirements.txt", "constraints.txt", "Makefile", "Dockerfile", ".ci/run", "pyproject.toml"]
)
def test_no_address_of_a_package_index(file: str) -> None:
    text = (ROOT / file).read_text()
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text)


def test_the_container_uses_what_exists() -> None:
    text = (ROOT / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert 'ENTRYPOINT ["driving-xai"]' in text
    assert re.search(r"^USER (?!root|0)", text, re.MULTILINE)


def test_links_between_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if not target.startswith(("http", "mailto")):
                assert (document.parent / target).exists(), f"{document.name} -> {target}"


def test_the_index_of_the_documents_is_complete() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    missing = [
        path.name
        for path in (ROOT / "docs").glob("*.md")
        if f"({path.name})" not in index and path.name != "README.md"
    ]
    assert not missing, f"docs/README.md does not list {', '.join(missing)}"


def test_every_file_of_the_packages_is_in_the_map() -> None:
    """The tree in docs/development.md has a line for each file or its folder."""
    tree = (ROOT / "docs" / "development.md").read_text()
    for package in ("data_prep", "driving_xai"):
        for path in (ROOT / package).iterdir():
            known = path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
            if known and not path.name.startswith("__"):
                assert path.name in tree, f"{package}/{path.name} is not in docs/development.md"
