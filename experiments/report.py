"""Parse the arguments of studies; report progress, tables, CSV files and figures."""

import argparse
import csv
import inspect
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax

from bcgc_jax import plotting
from bcgc_jax.cli.exit import flush, interrupted, take_any_sign
from bcgc_jax.cli.options import quick_flags
from bcgc_jax.cli.progress import Progress
from bcgc_jax.solvers.schemes import Scheme
from experiments import looks

TRACES = Path(__file__).resolve().parents[2] / "shared/traces"

T = TypeVar("T")
K = TypeVar("K")


def with_progress(items: Sequence[T], what: str) -> Iterator[T]:
    with Progress(what, len(items)) as bar:
        for item in items:
            bar.begin(what)
            yield item


def check_folder(option: str, path: str | os.PathLike[str]) -> None:
    """Make the folder `path` if missing; ValueError if it takes no files."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{option}: cannot write to {path}: {error.strerror or error}"
        ) from None
    if not os.access(path, os.W_OK):
        raise ValueError(f"{option}: cannot write to {path}: permission denied")


class Parser(argparse.ArgumentParser):
    """Say what is wrong in one line, status 2; print text before options as it is."""

    def __init__(self, command: str, **texts: Any) -> None:
        super().__init__(
            command, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def run_command(
    run: Callable[..., None],
    argv: Sequence[str] | None = None,
    *,
    compiles_quickly: bool = False,
) -> int:
    """The command `python -m experiments.NAME` of a study's `run(out, …)`; the exit
    status.

    Its text is the study's docstring. A `run` that takes a `seed`, `schemes` of other
    people or `traces` has an option for it. Switches this process to float64, and where
    it `compiles_quickly`, as where most of its time is compiling, to XLA's older
    emitters, as `bcgc` does, and to a single thread. What is wrong with the arguments,
    the schemes, the traces or the disk is one line and status 2.
    """
    module = sys.modules[run.__module__]
    takes = inspect.signature(run).parameters
    assert module.__spec__ is not None
    command = (
        f"python -m {module.__spec__.name}"  # the module itself is called __main__
    )
    take_any_sign()
    parser = Parser(
        command,
        description=module.__doc__,
        epilog=f"example: {command} --out /tmp/figures"
        + f"\n         {command} --traces experiments/data/steps.csv"
        * ("traces" in takes),
    )
    parser.add_argument(
        "--out",
        type=Path,
        default="figures",
        metavar="DIR",
        help="folder to write to (default: figures)",
    )
    for name, option in _OPTIONS.items():
        if name in takes:
            parser.add_argument(f"--{name}", **option)
    options = vars(parser.parse_args(argv))
    try:
        if options.get("schemes"):
            options["schemes"] = load_schemes(options["schemes"])
        plotting.require_matplotlib()
        check_folder("argument --out", options["out"])
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    jax.config.update("jax_enable_x64", True)
    if compiles_quickly:  # read as the first array is made
        os.environ["XLA_FLAGS"] = quick_flags(os.environ.get("XLA_FLAGS", ""))
        # XLA's threads wait for each other busily: with two, such small programs take
        # as long, and a third more of the processors.
        os.environ.setdefault("NPROC", "1")
    # What `solve` finds wrong with a scheme, or a reader with a trace, is the caller's
    # affair.
    expected_errors = (ValueError,) if "schemes" in takes or "traces" in takes else ()
    try:
        run(**options)
        sys.stdout.flush()
    except BrokenPipeError:
        flush()
    except OSError as error:
        flush()
        named = f"{error.filename}: " if error.filename else ""
        parser.error(f"{named}{error.strerror or error}")
    except (ImportError, *expected_errors) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        interrupted(command)
    return 0


def load_schemes(path: str | Path) -> list[Scheme]:
    """The list `SCHEMES` of a Python file; ValueError, in a line, without one."""
    try:
        schemes = runpy.run_path(str(path)).get("SCHEMES")
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"cannot read {path}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(schemes, list | tuple) or not all(
        isinstance(scheme, Scheme) for scheme in schemes
    ):
        raise ValueError(
            f"{path} defines no list SCHEMES = [bcgc_jax.Scheme(name, function), ...]"
        )
    names = [scheme.name for scheme in schemes]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: two schemes have one name: {', '.join(names)}")
    return list(schemes)


_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "seed": {
        "type": int,
        "default": 0,
        "metavar": "INT",
        "help": "seed of all that is drawn (default: 0)",
    },
    "faults": {
        "type": int,
        "default": 60,
        "metavar": "INT",
        "help": "faults of each scheme (default: 60)",
    },
    "format": {
        "choices": ("table", "json"),
        "default": "table",
        "help": "what is printed (default: table)",
    },
    "schemes": {
        "type": Path,
        "default": (),
        "metavar": "FILE",
        "help": "Python file with a list SCHEMES of bcgc_jax.Scheme: schemes of your "
        "own, drawn too",
    },
    "traces": {
        "type": Path,
        "default": TRACES,
        "metavar": "PATH",
        "help": "a folder of measured times, CSV, or one file (default: "
        "../shared/traces of the project)",
    },
}


def save(
    out: Path,
    tables: Mapping[str, Iterable[Any]],
    figures: Mapping[str, Any] | None = None,
) -> None:
    """Write each table as NAME.csv, each figure as NAME.png and NAME.svg, and say so.

    A table is rows of the same keys, named tuples or mappings; NaN and None become
    empty fields.
    """
    for name, table in tables.items():
        rows = [row if isinstance(row, Mapping) else row._asdict() for row in table]
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {key: _field(value) for key, value in row.items()} for row in rows
            )
    names = [f"{name}.csv" for name in tables]
    for name, figure in (figures or {}).items():
        names += [path.name for path in looks.save_figure(figure, out, name)]
    print(f"\nWritten to {out}: {', '.join(names)}")


def _field(value: object) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)


def readable(name: str) -> str:
    """What a trace's file name says, in words, for titles.

    >>> readable("pai_job_1_10_workers"), readable("steps_8_workers_microbatches")
    ('job 1\\n10 workers', 'steps\\n8 workers, microbatches')
    """
    words = (
        re.sub(r"_(\d+)_workers_?", r"\n\1 workers, ", name)
        .removesuffix(", ")
        .replace("_", " ")
    )
    return words.replace("llm training", "large-model training").replace(
        "pai job", "job"
    )


def grouped(rows: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The rows of each key, in their order.

    >>> grouped(["a", "bc", "d"], len)
    {1: ['a', 'd'], 2: ['bc']}
    """
    groups: dict[K, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table: a dash where there is none.

    >>> number(70495043.9), number(1.00234), number(float("nan"))
    ('7.050e+07', '1.002', '–')
    """
    if value is None or value != value:
        return "–"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:#.{digits}g}"
    return f"{value:.{digits - 1}e}"


def print_table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Print aligned columns, the first to the left, and floats by `number`."""
    cells = (
        [number(c) if isinstance(c, float) else str(c) for c in row] for row in rows
    )
    table = [list(header), *cells]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(f"\n{title}\n")
    for i, row in enumerate(table):
        aligned = [c.rjust(w) for c, w in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *aligned[1:]]).rstrip())
        if i == 0:
            print("-" * (sum(widths) + 2 * (len(widths) - 1)))
