"""The walls of the house: which folder is which package, what the wheel carries, and which way the arrows run."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: What `pyproject.toml` maps to packages.
SOURCES = ("engine", "lua", "http")


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a command and fails with its output when it does."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def pyproject() -> dict[str, dict[str, dict[str, object]]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def source_files(folder: str) -> Iterator[Path]:
    return (ROOT / folder).rglob("*.py")


def imported(path: Path) -> Iterator[str]:
    """The absolute names of all modules that a file of the house imports, `from a import b` as both `a` and `a.b`."""
    parts = ("holdfast", *path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # The file's own name counts as one level: `.` in holdfast/engine/keys.py is holdfast.engine,
            # and so it is in holdfast/engine/__init__.py, whose last part is __init__.
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


# ----------------------------------------------------------------------------- names that shadow nothing


@pytest.mark.parametrize("folder", ["http", "tests/http"])
def test_http_folders_are_never_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists(), "it would be taken for the standard library's http"


def test_namespace_has_no_init() -> None:
    assert not (ROOT / "__init__.py").exists()
    assert not (ROOT / "holdfast").exists()


def test_the_standard_library_keeps_its_http_in_the_root() -> None:
    code = "import http.client, http.server; print(http.client.__file__)"
    assert not run(sys.executable, "-c", code).stdout.startswith(str(ROOT / "http"))


def test_pytest_as_a_module_keeps_the_standard_library_http(tmp_path: Path) -> None:
    # `python -m pytest` puts the root first on the path, as the tests are really run.
    test = tmp_path / "test_client.py"
    test.write_text(
        f"import http.client\ndef test_it():\n    assert not http.client.__file__.startswith({str(ROOT / 'http')!r})\n"
    )
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", test)


def test_engine_is_loaded_once() -> None:
    code = (
        "import sys, holdfast.engine.errors;"
        "assert 'engine' not in sys.modules and 'lua' not in sys.modules, 'a second copy'"
    )
    run(sys.executable, "-c", code)


def test_version_is_readable() -> None:
    assert version("holdfast") == pyproject()["project"]["version"]


# ----------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy: a build folder left in the root would put deleted modules into it."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", out, ".", cwd=source)
    (built,) = out.glob("holdfast-*.whl")
    return zipfile.ZipFile(built)


def test_wheel_carries_every_file_of_the_house(wheel: zipfile.ZipFile) -> None:
    expected = {
        f"holdfast/{path.relative_to(ROOT).as_posix()}"
        for folder in SOURCES
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= set(wheel.namelist()), f"missing: {sorted(expected - set(wheel.namelist()))}"
    assert {f"holdfast/{folder}/py.typed" for folder in SOURCES} <= expected
    assert any(name.endswith(".lua") for name in expected)


def test_wheel_carries_nothing_else(wheel: zipfile.ZipFile) -> None:
    strangers = [
        name
        for name in wheel.namelist()
        if not name.startswith(("holdfast/engine/", "holdfast/lua/", "holdfast/http/", "holdfast-"))
    ]
    assert strangers == []


# ----------------------------------------------------------------------------- arrows: http -> engine -> lua


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("engine", "holdfast.http"),
        ("engine", "aiohttp"),
        ("engine", "cyclopts"),
        ("lua", "holdfast.engine"),
        ("lua", "holdfast.http"),
        ("lua", "redis"),
        ("http", "holdfast.lua"),
    ],
)
def test_arrows_run_one_way(folder: str, forbidden: str) -> None:
    found = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in source_files(folder)
        for module in imported(path)
        if within(module, forbidden)
    ]
    assert found == []


def test_relative_imports_are_resolved() -> None:
    # The arrows above would be silent if this were wrong.
    assert "holdfast.engine.values" in set(imported(ROOT / "engine" / "errors.py"))


def test_one_module_names_the_keys() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("engine", "http")
        for path in source_files(folder)
        if path != ROOT / "engine" / "keys.py"
        for node in ast.walk(ast.parse(path.read_text(), str(path)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("hf:")
    ]
    assert found == [], "keys in Redis are named in engine/keys.py only"


@pytest.mark.parametrize("name", ["engine", "lua"])
def test_lint_forbids_the_second_copy(name: str, tmp_path: Path) -> None:
    ruff = shutil.which("ruff", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if ruff is None:
        pytest.skip("ruff is not installed here (it is in .venv)")
    bad = tmp_path / "bad.py"
    bad.write_text(f"import {name}\nfrom {name} import x\n")
    result = subprocess.run(
        [ruff, "check", "--no-cache", "--config", ROOT / "pyproject.toml", "--output-format", "json", bad],
        capture_output=True,
        text=True,
    )
    assert [finding["code"] for finding in json.loads(result.stdout)].count("TID251") == 2


# ----------------------------------------------------------------------------- what installing needs


def test_constraints_pin_exactly_and_name_no_address() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.+!-]+", line)] == []


def test_constraints_pin_every_direct_dependency() -> None:
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]  # type: ignore[attr-defined]
    names = {re.match(r"[A-Za-z0-9._-]+", requirement).group().lower() for requirement in wanted}  # type: ignore[union-attr]
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert names <= pinned


def test_every_package_is_listed() -> None:
    # setuptools is told its packages one by one: a new folder with Python in it has to be added there.
    listed = set(pyproject()["tool"]["setuptools"]["package-dir"].values())  # type: ignore[attr-defined]
    folders = {path.parent.relative_to(ROOT).as_posix() for folder in SOURCES for path in source_files(folder)}
    assert folders <= listed
