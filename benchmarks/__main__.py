"""`python -m benchmarks`: measure what the README says about speed; a table, and JSON with --out."""

import argparse
import contextlib
import functools
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax

from bcgc_jax.cli.destinations import check_file
from bcgc_jax.cli.ending import interrupted, take_any_sign
from bcgc_jax.solvers.schemes import SchemeError, load_schemes
from benchmarks.cluster import cluster, cluster_faults
from benchmarks.coding import traffic, training
from benchmarks.crossing import crossing
from benchmarks.first_answer import first_answer
from benchmarks.large_model import cluster_large
from benchmarks.planning import (
    completion,
    evaluation,
    optima,
    programme,
    schemes,
    simulation,
    solutions,
)
from benchmarks.scaling import draw_curves, many_workers, scaling
from benchmarks.scheduling import schedules
from benchmarks.sweeping import memory, sweep, sweep_scaling
from benchmarks.timing import environment, usable_cores

# Each gives rows of results, or points of scaling curves (those have a key "curve").
MEASURES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "first_answer": first_answer,
    "simulation": simulation,
    "evaluation": evaluation,
    "completion": completion,
    "crossing": crossing,
    "solutions": solutions,
    "programme": programme,
    "optima": optima,
    "schemes": schemes,
    "schedules": schedules,
    "traffic": traffic,
    "training": training,
    "cluster": cluster,
    "cluster_large": cluster_large,
    "cluster_faults": cluster_faults,
    "sweep": sweep,
    "memory": memory,
    "scaling": scaling,
    "many_workers": many_workers,
    "sweep_scaling": sweep_scaling,
}

_WIDTH = 100


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; the exit status: 1 where a measure was skipped, 2 for bad input."""
    take_any_sign()
    parser = _parser()
    args = parser.parse_args(argv)
    _check_output(parser, args.out)
    chosen = list(dict.fromkeys(args.only)) or list(MEASURES)
    for name in chosen:
        if name not in MEASURES:
            parser.error(f'argument --only: there is no measure "{name}"; there are {", ".join(MEASURES)}')
    measures = dict(MEASURES)
    if args.schemes is not None:
        measures["schemes"] = _measure_of(parser, args.schemes)
        # First, so that a scheme that fails does not cost the other measures.
        chosen = ["schemes", *(name for name in chosen if name != "schemes")]
    # One device for each core, as `bcgc sweep` has them; too late in a process that has computed already.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", usable_cores())
    results, points, skipped = [], [], False
    for name in chosen:
        print(f"measuring {name}: {_summary(measures[name])}", file=sys.stderr, flush=True)
        try:
            rows = measures[name]()
        except SchemeError as error:
            parser.error(str(error))
        except ImportError as error:
            print(f"{parser.prog}: skipped {name}: {error}", file=sys.stderr)
            skipped = True
            continue
        except KeyboardInterrupt:
            interrupted(parser.prog)
        results += [row for row in rows if "curve" not in row]
        points += [row for row in rows if "curve" in row]
    facts = environment()
    print_table(results, points, facts)
    if args.out is not None:
        everything = {"environment": facts, "results": results, "scaling": points}
        text = json.dumps(everything, indent=2, ensure_ascii=False, allow_nan=False)
        try:
            args.out.write_text(text + "\n", encoding="utf-8")
            if points:
                draw_curves(points, args.out.parent, args.out.stem)
        except OSError as error:
            parser.error(f"argument --out: {error.filename}: {error.strerror}")
        except ImportError as error:
            print(f"{parser.prog}: no figure: {error}", file=sys.stderr)
    return int(skipped)


def _parser() -> _Parser:
    names = "\n".join(f"  {name:<16}{_summary(measure)}" for name, measure in MEASURES.items())
    parser = _Parser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"measures:\n{names}\n\n"
        "examples:\n"
        "  python -m benchmarks --out speed.json\n"
        "  python -m benchmarks --only schemes --schemes my_schemes.py\n"
        "where my_schemes.py has a list SCHEMES = [bcgc_jax.Scheme(name, function)]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.json",
        help="also write JSON to this file, and the scaling curves beside it as FILE.png and FILE.svg",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="a measure to run, again for more of them (default: all)",
    )
    parser.add_argument(
        "--schemes",
        type=Path,
        metavar="FILE.py",
        help="a file with a list SCHEMES, to be measured beside the baselines",
    )
    return parser


def _measure_of(parser: _Parser, file: Path) -> Callable[[], list[dict[str, Any]]]:
    """The measure of the schemes in a file."""
    try:
        own = load_schemes(file)
    except ValueError as error:
        parser.error(f"argument --schemes: {error}")
    return functools.wraps(schemes)(functools.partial(schemes, own))


def _summary(measure: Callable[..., Any]) -> str:
    return (inspect.getdoc(measure) or "").partition("\n")[0]


def _check_output(parser: _Parser, out: Path | None) -> None:
    try:
        if out is not None:
            check_file("argument --out", out, (".json",))
    except ValueError as error:
        parser.error(str(error))


def seconds_text(seconds: float) -> str:
    """A time of four characters or so with its unit.

    >>> seconds_text(0.0000123), seconds_text(0.0456), seconds_text(31.27)
    ('12.3 µs', '45.6 ms', '31.3 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def ratio_text(ratio: float) -> str:
    """Three digits, or a whole number.

    >>> ratio_text(0.1234), ratio_text(91.26), ratio_text(4321.7)
    ('0.123', '91.3', '4322')
    """
    return f"{ratio:.3g}" if ratio < 1000 else f"{ratio:.0f}"


def print_table(
    results: Sequence[dict[str, Any]], points: Sequence[dict[str, Any]], facts: dict[str, Any]
) -> None:
    """Medians of every row, what they are compared with, and the scaling curves."""
    for measure in dict.fromkeys(row["measure"] for row in results):
        print(f"\n{measure:<58}{'package':>10}{'peer':>10}{'ratio':>8}{'first call':>14}")
        for row in (row for row in results if row["measure"] == measure):
            peer = seconds_text(row["peer"]["median"]) if "peer" in row else ""
            ratio = ratio_text(row["ratio"]) if "peer" in row else ""
            what = f"{row['what']}, {row['dtype']}"
            times = f"{seconds_text(row['package']['median']):>10}{peer:>10}{ratio:>8}"
            print(f"{what:<58}{times}{seconds_text(row['package']['first_call']):>14}")
            text = f"against {row['against']}; {row['accuracy']}" if "peer" in row else row["accuracy"]
            text = text.replace(" %", "\u00a0%")  # no line starts with the sign
            print(textwrap.fill(text, _WIDTH, initial_indent="    ", subsequent_indent="    "))
    for curve in dict.fromkeys(point["curve"] for point in points):
        mine = [point for point in points if point["curve"] == curve]
        head = f"{mine[0]['x_name']:>12}{'package':>12}{'first call':>14}{'gap or error':>14}"
        print(f"\n{'scaling: ' + curve:<28}{head}")
        for point in mine:
            gap = "" if point["gap"] is None else f"{point['gap']:.0e}"
            times = f"{seconds_text(point['seconds']):>12}{seconds_text(point['first_call']):>14}"
            print(f"{'':28}{point['x']:>12}{times}{gap:>14}")
    about = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
    print()
    print(
        textwrap.fill("Times are medians; ratio is the peer's median through the package's. " + about, _WIDTH)
    )


if __name__ == "__main__":
    sys.exit(main())
