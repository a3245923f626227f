"""Imports point down: which file may use which is read from the source."""

import ast
import graphlib
import importlib
import re
from pathlib import Path
from types import ModuleType

import bcgc_jax
from bcgc_jax.balancing.scheme_names import ABOUT, ADVISED
from tests.scripts import python

ROOT = Path(bcgc_jax.__file__).parent
# From the ground up. A file uses those on lower floors, and its neighbours in the same
# folder.
FLOORS = (
    ("_derivatives", "_limits", "_pytree", "_removed"),
    ("_extras",),
    ("distributions",),
    ("exact", "balancing"),
    ("problem",),
    ("citations", "plans"),
    ("solution",),
    ("traces",),
    ("diagnosis", "solvers"),
    ("coding", "sweeps"),
    ("__init__",),
    ("plotting",),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# Dotted names within the package, of files and of folders; the package itself is
# `__init__`.
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for path in ROOT.rglob("*.py")
}


def _top(name: str) -> str:
    return name.partition(".")[0]


def _imported(path: Path) -> set[str]:
    """The package's files that a file imports, also within a function."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules += [
                name if name.removeprefix("bcgc_jax.") in FILES else str(node.module)
                for name in names
            ]
    inside = [name.partition(".")[2] for name in modules if _top(name) == "bcgc_jax"]
    return {name or "__init__" for name in inside}


GRAPH = {name: _imported(path) for name, path in FILES.items()}
# Those that are imported by their names.
GRAPH["balancing.scheme_names"] |= {
    f"balancing.{where.partition('.')[0]}" for where in ADVISED
}
SOLVERS = (about.solver.partition(".")[0] for about in ABOUT.values() if about.solver)
GRAPH["solvers.methods"] |= {f"solvers.{file}" for file in SOLVERS}


def test_every_file_has_a_floor_and_every_floor_a_file():
    assert sorted({_top(name) for name in FILES}) == sorted(
        name for floor in FLOORS for name in floor
    )


def test_the_picture_that_maintainers_look_at_is_that_on_disk():
    """Each folder has a box. Its first file and its public names are there."""
    text = (ROOT.parent / "docs" / "maintaining.md").read_text("utf-8")
    titles = re.findall(r"┌─ (\w+)[/.]", text)
    firsts = re.findall(r"└─ read (\w+)\.py first", text)
    folders = {path.parent.name for path in ROOT.glob("*/*.py")}
    assert sorted(titles) == sorted(folders | {"problem"})
    for title, first in zip(titles, firsts, strict=True):
        assert first == title or f"{title}.{first}" in FILES, title
    names = {name for cell in _names(text) for name in cell}
    for title in sorted(folders - {"cli"}):
        package = importlib.import_module(f"bcgc_jax.{title}")
        names_there = {name for name in names if _is_in(package, name)}
        assert names_there, title
        names -= names_there
    assert names <= {*bcgc_jax.__all__}


def _names(text: str) -> list[list[str]]:
    """The words below the empty line of each box."""
    cells: list[list[str]] = []
    for row in re.split(r"^└.*$", text.partition("┌")[2], flags=re.MULTILINE)[:-1]:
        lines = [re.findall(r"│ (.*?) │", line) for line in row.splitlines()]
        for column in zip(*filter(None, lines), strict=True):
            said = "\n".join(cell.strip() for cell in column).strip()
            cells.append(re.findall(r"[\w.]+", said.rpartition("\n\n")[2]))
    return [names for names in cells if names[:1] != ["commands"]]


def _is_in(package: ModuleType, name: str) -> bool:
    """A public name of a package, or `module.name` within it."""
    module, _, inside = name.rpartition(".")
    try:
        owner = importlib.import_module(f"{package.__name__}.{module}".rstrip("."))
    except ModuleNotFoundError:
        return False
    return hasattr(owner, inside)


def test_imports_point_down():
    """Figures, processes and terminals are near the top, for those who ask."""
    for name, used in ((name, used) for name, files in GRAPH.items() for used in files):
        within = _top(used) == _top(name) != "__init__"
        assert within or FLOOR[_top(used)] < FLOOR[_top(name)], f"{name} imports {used}"


def test_balancing_diagnosis_and_the_readers_of_traces_need_no_jax():
    """Fitted distributions need it, and compiled programs that share their work."""
    fits = ("traces.choice", "traces.fits", "traces.resampling")
    with_jax = ("balancing.compiled", *fits)
    names = [
        f"bcgc_jax.{name}"
        for name in FILES
        if _top(name) in ("balancing", "diagnosis", "traces")
        and not name.startswith(with_jax)
    ]
    assert len(names) > 40
    program = f"import sys, {', '.join(names)}; print('jax' in sys.modules)"
    assert python(program).stdout == "False\n"


def test_a_rule_answers_for_itself():
    """A class is asked for only where a plan of one kind is needed."""
    nodes = [
        node
        for path in FILES.values()
        for node in ast.walk(ast.parse(path.read_text()))
    ]
    rules = _kinds_of(
        "Rule", [node for node in nodes if isinstance(node, ast.ClassDef)]
    )
    assert {"AnyOf", "WorkSharing", "Stopped", "StopAfter", "InARow", "Limit"} <= rules
    asked = [
        node.args[1]
        for node in nodes
        if isinstance(node, ast.Call) and _name(node.func) == "isinstance"
    ]
    of_rules = [
        classes
        for classes in asked
        if rules & {_name(node) for node in ast.walk(classes)}
    ]
    assert len(of_rules) <= 3, [ast.unparse(classes) for classes in of_rules]


def _kinds_of(base: str, classes: list[ast.ClassDef]) -> set[str]:
    """The names of a class and of all that derive from it."""
    kinds = {base}
    while (
        derived := {c.name for c in classes if kinds & {*map(_name, c.bases)}} - kinds
    ):
        kinds |= derived
    return kinds


def _name(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def test_imports_make_no_circle():
    assert set(graphlib.TopologicalSorter(GRAPH).static_order()) == set(FILES)


def test_no_test_file_is_imported():
    """Nor by a script that a test runs. What tests share is named by what it is."""
    imports = re.compile(r"^(from|import) tests\.(\w+\.)*test_\w", re.MULTILINE)
    files = (ROOT.parent / "tests").rglob("*.py")
    assert not [str(file) for file in files if imports.search(file.read_text("utf-8"))]
