"""What every experiment does at its two ends: arguments in; progress, tables and CSV out."""

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import jax

from bcgc_jax import plotting
from bcgc_jax.cli.destinations import check_folder
from bcgc_jax.cli.ending import flush, interrupted, take_any_sign
from bcgc_jax.solvers.schemes import SchemeError, load_schemes

TRACES = Path(__file__).resolve().parents[2] / "shared/traces"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def run_command(
    name: str,
    description: str,
    run: Callable[..., None],
    argv: Sequence[str] | None = None,
    *,
    seeded: bool = True,
    schemes: bool = False,
    traced: bool = False,
) -> int:
    """The command `python -m experiments.NAME`: read `argv`, call `run(out)`, return the exit status.

    A `seeded` experiment has an option for it and is called as `run(out, seed=...)`; one that takes other
    people's `schemes` has an option for a file of them and gets `schemes=...`; a `traced` one has an option
    for files of measured times and gets `traces=...`. Switches this process to float64. What is wrong with
    the arguments, the schemes, the trace or the disk is one line and status 2.
    """
    command = f"python -m experiments.{name}"
    take_any_sign()
    parser = _parser(command, description, seeded=seeded, schemes=schemes, traced=traced)
    args = parser.parse_args(argv)
    try:
        own = load_schemes(args.schemes) if schemes and args.schemes is not None else []
        plotting.require_matplotlib()
        check_folder("argument --out", args.out)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    options = ({"seed": args.seed} if seeded else {}) | ({"traces": args.traces} if traced else {})
    options |= {"schemes": own} if schemes else {}
    jax.config.update("jax_enable_x64", True)
    try:
        run(args.out, **options)
        sys.stdout.flush()
    except BrokenPipeError:
        flush()
    except OSError as error:
        flush()
        named = f"{error.filename}: " if error.filename else ""
        parser.error(f"{named}{error.strerror or error}")
    except ImportError as error:
        parser.error(str(error))
    except SchemeError as error:
        parser.error(_one_line(error))
    except ValueError as error:
        if not (schemes or traced):
            raise
        parser.error(_one_line(error))  # what `solve` finds wrong with a scheme, or a reader with a trace
    except KeyboardInterrupt:
        interrupted(command)
    return 0


def _parser(command: str, description: str, *, seeded: bool, schemes: bool, traced: bool) -> _Parser:
    parser = _Parser(
        prog=command,
        description=description,
        epilog=f"example: {command} --out /tmp/figures"
        + f"\n         {command} --traces experiments/data/steps.csv" * traced,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("figures"),
        metavar="DIR",
        help="folder to write to (default: figures)",
    )
    if seeded:
        parser.add_argument(
            "--seed",
            type=int,
            default=0,
            metavar="INT",
            help="seed of all that is drawn (default: 0)",
        )
    if schemes:
        parser.add_argument(
            "--schemes",
            type=Path,
            metavar="FILE",
            help="Python file with a list SCHEMES of bcgc_jax.Scheme: schemes of your own, drawn too",
        )
    if traced:
        parser.add_argument(
            "--traces",
            type=Path,
            default=TRACES,
            metavar="PATH",
            help="a folder of measured times, CSV, or one file (default: ../shared/traces of the project)",
        )
    return parser


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write `rows`, which have the same keys, under a header; NaN and None become empty fields."""
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _field(value) for key, value in row.items()} for row in rows)


def _field(value: object) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table: a dash where there is none.

    >>> number(70495043.9), number(1.00234), number(float("nan"))
    ('7.050e+07', '1.002', '–')
    """
    if value is None or value != value:
        return "–"
    return f"{value:#.{digits}g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.{digits - 1}e}"


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns: the first to the left, the others to the right."""
    table = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print(f"\n{title}\n")
    for i, row in enumerate(table):
        cells = [c.rjust(w) for c, w in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
        if i == 0:
            print("-" * (sum(widths) + 2 * (len(widths) - 1)))
