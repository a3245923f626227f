"""Count what makes the code hard to read: `python -m benchmarks.reading [FOLDER …]`.

Blank lines, comments and docstrings do not count as code. A name is counted where it is
bound: as a variable, argument, function or class. `NO_NOUNS` lists the names that
contain no noun.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

FOLDERS = "bcgc_jax", "experiments", "benchmarks", "tests"
LONG = 88
# Pronouns, function words and participles.
_WORDS = (
    "again all another any at both each either every few found given here it known "
    "made many mine more most needed neither nobody none old one other others own "
    "rest same several shown some such taken that them there these this those told "
    "wanted"
)
NO_NOUNS = frozenset(_WORDS.split())
_LAYOUT = {
    *(
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
    ),
    tokenize.ENDMARKER,
}


class Reading(NamedTuple):
    """Counts of a folder."""

    files: int
    lines: int
    long_lines: int
    code_lines: int
    tokens: int
    conditionals: int
    double_assignments: int
    names: int
    names_without_noun: int
    constants: int
    sleeps: int
    tests_of_tests: int

    def row(self) -> list[str]:
        code = max(self.code_lines, 1)
        return [
            str(self.lines),
            str(self.tokens),
            f"{self.tokens / code:.2f}",
            f"{100 * self.long_lines / max(self.lines, 1):.1f}",
            f"{1000 * self.conditionals / code:.1f}",
            f"{1000 * self.double_assignments / max(self.lines, 1):.1f}",
            f"{100 * self.names_without_noun / max(self.names, 1):.1f}",
            str(self.constants),
            str(self.sleeps),
            str(self.tests_of_tests),
        ]


TITLES = (
    *("lines", "tokens", "tokens a line of code", f"% of lines over {LONG}"),
    *(
        "conditional expressions in 1000",
        "double assignments in 1000",
        "% of names without noun",
    ),
    *("constants of modules", "calls of sleep", "test files that import test files"),
)


def reading(text: str, name: str = "") -> Reading:
    """Of a file, whose name says whether it is a test.

    >>> found = reading(
    ...     "x, y = 1, 2\\nfor each in (x if y else z):\\n    # Rest.\\n    f(each)\\n"
    ... )
    >>> (found.code_lines, found.tokens, found.conditionals, found.double_assignments)
    (3, 22, 1, 1)
    >>> (found.names, found.names_without_noun)
    (3, 1)
    """
    tree = ast.parse(text)
    strings = _docstrings(tree)
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in _LAYOUT and token.start[0] not in strings
    ]
    lines = text.splitlines()
    nodes = list(ast.walk(tree))
    bound = [name for node in nodes for name in _bound(node)]
    imports = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return Reading(
        files=1,
        lines=len(lines),
        long_lines=sum(len(line) > LONG for line in lines),
        code_lines=len({token.start[0] for token in tokens}),
        tokens=len(tokens),
        conditionals=sum(isinstance(node, ast.IfExp) for node in nodes),
        double_assignments=sum(map(_is_double, nodes)),
        names=len(bound),
        names_without_noun=len(names_without_noun(text)),
        constants=sum(map(_is_constant, tree.body)),
        sleeps=sum(
            isinstance(node, ast.Call) and _called(node) == "sleep" for node in nodes
        ),
        tests_of_tests=int(name.startswith("test_") and any(map(_is_test, imports))),
    )


def names_without_noun(text: str) -> list[str]:
    """Names of a file that are pronouns, function words or participles alone.

    >>> names_without_noun("first_worker, other = workers")
    ['other']
    """
    bound = [name for node in ast.walk(ast.parse(text)) for name in _bound(node)]
    names = [name for name in bound if not name.startswith("__")]
    return [name for name in names if name.strip("_") in NO_NOUNS]


def total(readings: Sequence[Reading]) -> Reading:
    return Reading(*map(sum, zip(*readings, strict=True)))


def _docstrings(tree: ast.AST) -> set[int]:
    """The lines of strings that stand alone."""
    alone = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    spans = [range(node.lineno, (node.end_lineno or node.lineno) + 1) for node in alone]
    return {line for span in spans for line in span}


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a node binds."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name


def _is_double(node: ast.AST) -> bool:
    """Whether it is `a, b = c, d`."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    return isinstance(node.targets[0], ast.Tuple)


def _is_constant(node: ast.stmt) -> bool:
    """Whether it sets a number at the top of a file, under a name in capitals."""
    if not isinstance(node, ast.Assign):
        return False
    names = [
        name.id for name in ast.walk(node.targets[0]) if isinstance(name, ast.Name)
    ]
    numbers = [part for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
    values = any(type(part.value) in (int, float) for part in numbers)
    return values and all(re.fullmatch(r"_?[A-Z][A-Z0-9_]*", name) for name in names)


def _called(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return getattr(call.func, "id", "")


def _is_test(module: str) -> bool:
    return module.rpartition(".")[2].startswith("test_")


def main(folders: Sequence[str]) -> None:
    columns = []
    for folder in folders:
        files = sorted(Path(folder).rglob("*.py"))
        columns.append(
            total([reading(file.read_text("utf-8"), file.name) for file in files]).row()
        )
    width = max(map(len, TITLES))
    print(" " * width, *(f"{folder:>12}" for folder in folders))
    for place, title in enumerate(TITLES):
        print(f"{title:{width}}", *(f"{column[place]:>12}" for column in columns))


if __name__ == "__main__":
    main(sys.argv[1:] or FOLDERS)
