"""Keeps what no type checker sees: who may import whom, and sizes that a reader can hold."""

import ast
import configparser
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config import dump_config, load_config

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("launcher", "engine", "methods", "data")
MAY_IMPORT = {
    "launcher": {"launcher", "engine", "methods", "data"},
    # The engine trains any method by the interface, and knows none by name.
    "engine": {"engine", "methods.method"},
    "methods": {"methods", "engine.collectives", "engine.ledger"},
    "data": {"data"},
}
# Only the engine may know how processes are started and where metrics are shown.
ENGINE_ONLY = {"accelerate", "deepspeed", "wandb"}
READS_ENVIRONMENT = Path("engine/runtime.py")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

MODULES = sorted(
    path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")
)
BENCHMARKS = sorted(path.relative_to(ROOT) for path in (ROOT / "benchmarks").rglob("*.py"))
TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))
CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").glob("*.yaml"))


def imported_names(tree: ast.Module, package: str) -> Iterator[str]:
    """Yield the full dotted name of each import; ``package`` is the module's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: 1 - node.level or None] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def forbidden_imports(tree: ast.Module, package: str) -> list[str]:
    own = package.partition(".")[0]

    def is_allowed(name: str) -> bool:
        top = name.partition(".")[0]
        if top in PACKAGES or top == "tests":
            return any(f"{name}.".startswith(f"{prefix}.") for prefix in MAY_IMPORT[own])
        return own not in ("methods", "data") or top not in ENGINE_ONLY

    return [name for name in imported_names(tree, package) if not is_allowed(name)]


def environment_reads(tree: ast.Module) -> list[int]:
    """Return the lines that touch the environment through ``os``."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in names and is_os(node.value))
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "os"
            and names & {alias.name for alias in node.names}
        )
    ]


def is_os(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "os"


def long_functions(tree: ast.Module) -> list[str]:
    return [
        f"{node.name}: {num_lines} lines"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (num_lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def sets_all(tree: ast.Module) -> bool:
    """Whether the module says what it exports; one that holds only a docstring exports nothing."""
    is_empty = all(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in tree.body
    )
    targets = [
        target
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return is_empty or any(isinstance(node, ast.Name) and node.id == "__all__" for node in targets)


def read(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def test_the_packages_are_found():
    assert {path.parts[0] for path in MODULES} == set(PACKAGES)
    assert Path(__file__).relative_to(ROOT) in TESTS


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_follow_the_arrows(path):
    assert forbidden_imports(read(path), ".".join(path.parent.parts)) == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_only_the_runtime_reads_the_environment(path):
    if path != READS_ENVIRONMENT:
        assert environment_reads(read(path)) == []


@pytest.mark.parametrize("path", MODULES + BENCHMARKS, ids=str)
def test_modules_say_what_they_export(path):
    assert sets_all(read(path))


@pytest.mark.parametrize("path", MODULES + BENCHMARKS + TESTS, ids=str)
def test_files_and_functions_stay_readable(path):
    num_lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_FILE_LINES
    assert long_functions(read(path)) == []


def test_every_package_gets_installed():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = settings["options"]["packages"].split()

    assert sorted(listed) == sorted({".".join(path.parent.parts) for path in MODULES})


def test_every_template_gets_installed():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = settings["options.package_data"]["engine"].split()
    templates = [
        path.relative_to(ROOT / "engine") for path in (ROOT / "engine/templates").iterdir()
    ]

    assert len(templates) > 1
    for template in templates:
        assert any(template.match(pattern) for pattern in patterns), template


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_configs_load_and_survive_a_dump(path, tmp_path):
    settings = pytest.importorskip("launcher.settings")
    # Where the images are is for the user to say.
    config = load_config(settings.Config, ROOT / path, ["data.root=/data"])

    (tmp_path / "dump.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(settings.Config, tmp_path / "dump.yaml") == config


@pytest.mark.parametrize(
    ("package", "source", "forbidden"),
    [
        ("data", "import engine.plan", ["engine.plan"]),
        ("data.sources", "def f():\n    from methods import qmix", ["methods.qmix"]),
        ("data.sources", "from ..manifest import Manifest\nfrom . import folders", []),
        ("data", "from ..engine import plan", ["engine.plan"]),
        ("data", "import database, torch", []),
        ("data", "from accelerate import Accelerator", ["accelerate.Accelerator"]),
        ("methods", "from engine import ledger, trainer", ["engine.trainer"]),
        ("methods", "import engine", ["engine"]),
        ("methods", "from engine.collectives import gather", []),
        ("methods", "from engine.ledgers import Ledger", ["engine.ledgers.Ledger"]),
        ("methods", "import wandb.sdk", ["wandb.sdk"]),
        ("engine", "from accelerate import Accelerator\nimport wandb", []),
        ("engine", "from data.manifest import Manifest", ["data.manifest.Manifest"]),
        ("launcher", "import engine.trainer, methods, data.sources", []),
        ("launcher", "from tests.helpers import x", ["tests.helpers.x"]),
    ],
)
def test_a_forbidden_import_is_seen(package, source, forbidden):
    assert forbidden_imports(ast.parse(source), package) == forbidden


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import os\nx = os.environ['RANK']", [2]),
        ("import os\ndef f():\n    return os.getenv('RANK')", [3]),
        ("from os import environ", [1]),
        ("import os\nos.environ.update(A='1')", [2]),
        ("import os\nos.cpu_count()\nself.environ", []),
    ],
)
def test_a_read_of_the_environment_is_seen(source, lines):
    assert environment_reads(ast.parse(source)) == lines


def test_a_long_function_is_seen():
    longest_allowed = "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)
    assert long_functions(ast.parse(longest_allowed)) == []
    assert long_functions(ast.parse(longest_allowed + "    x = 1\n")) == ["f: 61 lines"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Doc."""', True),
        ('"""Doc."""\n__all__ = []', True),
        ("__all__: list[str] = []", True),
        ("x = 1", False),
        ("def f():\n    __all__ = []", False),
    ],
)
def test_a_missing_export_list_is_seen(source, expected):
    assert sets_all(ast.parse(source)) is expected
