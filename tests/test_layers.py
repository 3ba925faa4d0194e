"""Who may import whom, and what nobody imports: read from the source, so that lazy imports count too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("threed", "renderers", "distill", "exporters")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# Layer by layer: what a module of this part may import of the project.
ALLOWED = {
    "renderers": {"renderers"},
    "distill": {"renderers", "distill"},
    "exporters": {"renderers", "exporters"},
    "threed": {"renderers", "distill", "exporters", "threed"},
}
BACKENDS = {"torch_ops", "cpu_ops", "cuda_ops"}
EXTERNAL = {"nvdiffrast", "tinycudann", "nerfacc"}  # each in its own module of renderers/external alone
FOREIGN = EXTERNAL | {"pickle", "cloudpickle", "dill", "joblib", "shelve"}


def imports(path: Path) -> Iterator[str]:
    """Every module and every name out of a module that the file imports, dotted."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(imported: str) -> str | None:
    """The part of the project that a dotted name belongs to; None for other packages."""
    words = imported.split(".")
    if words[0] != "threed":
        return None
    return words[1] if words[1:] and words[1] in ALLOWED else "threed"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_layers(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    wrong = [name for name in imports(path) if (p := part(name)) is not None and p not in ALLOWED[own]]
    # Nothing is lower than the package's own version number.
    assert [name for name in wrong if name != "threed.__version__"] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe_or_unfree_is_imported(path: Path) -> None:
    own = {path.stem} & EXTERNAL if path.parent == ROOT / "renderers" / "external" else set()
    assert {name.split(".")[0] for name in imports(path)} & FOREIGN == own
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"\btorch\.(load|save)\(|\bweights_only\b|\ballow_pickle=True|\beval\(\w|\bexec\(", source)


def test_numba_lives_in_its_backend_alone() -> None:
    users = {path for path in SOURCES if any(name.split(".")[0] == "numba" for name in imports(path))}
    assert {path.parent.relative_to(ROOT).as_posix() for path in users} == {"renderers/cpu_ops"}


def test_only_ops_chooses_a_backend() -> None:
    """Others call `ops(device)` and import types at most; the doctor compares both backends."""
    for path in SOURCES:
        functions = [name for name in imports(path) if not name.split(".")[-1][0].isupper()]
        named = {word for name in functions for word in name.split(".")} & BACKENDS
        if named and path.parent.name not in BACKENDS | {"external"}:
            assert path.relative_to(ROOT).as_posix() == "threed/doctor.py", f"{path} imports {named}; ask ops(device)"


def test_the_rules_see_what_they_forbid(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "def f():\n    from threed.distill import prior\n    import numba.core\n    from threed import cli\n"
    )
    found = list(imports(bad))
    assert found == ["threed.distill.prior", "numba.core", "threed.cli"]
    assert [part(name) for name in found] == ["distill", None, "threed"]


def test_every_package_is_installed() -> None:
    """A folder that pyproject.toml forgets works in a checkout and is missing in a wheel."""
    import tomllib

    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {str(path.parent.relative_to(ROOT)) for path in SOURCES}
    assert set(tool["package-dir"].values()) == folders
    assert set(tool["packages"]) == set(tool["package-dir"])
