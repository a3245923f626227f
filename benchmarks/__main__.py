"""Measure the speeds that the documents state: a table, and JSON with --out."""

import contextlib
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from bcgc_jax.cli.exit import check_file, interrupted, take_any_sign
from benchmarks.coding import traffic, training
from benchmarks.compiled import compiling
from benchmarks.crossing import crossing
from benchmarks.first_answer import first_answer
from benchmarks.handing_out import questions
from benchmarks.planning import (
    completion,
    equal_quality,
    evaluation,
    optima,
    programme,
    simulation,
    solutions,
)
from benchmarks.profiles import profiles
from benchmarks.scaling import draw_curves, large_n, scaling
from benchmarks.scheduling import schedules
from benchmarks.sweeping import memory, sweep, sweep_scaling
from benchmarks.timing import environment, usable_cores
from experiments.report import Parser, grouped

# Each gives rows of results, or points of scaling curves (those have a key "curve").
_MEASURES: Sequence[Callable[[], list[dict[str, Any]]]] = (
    first_answer,
    simulation,
    evaluation,
    completion,
    crossing,
    solutions,
    equal_quality,
    programme,
    optima,
    schedules,
    traffic,
    training,
    questions,
    compiling,
    sweep,
    memory,
    profiles,
    scaling,
    large_n,
    sweep_scaling,
)
MEASURES = {measure.__name__: measure for measure in _MEASURES}

_WIDTH = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; exit status 1 if a measure is skipped, 2 for bad input."""
    take_any_sign()
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        if args.out is not None:
            check_file("argument --out", args.out, (".json",))
    except ValueError as error:
        parser.error(str(error))
    chosen = list(dict.fromkeys(args.only)) or list(MEASURES)
    for name in chosen:
        if name not in MEASURES:
            parser.error(
                f'argument --only: there is no measure "{name}"; there are '
                f"{', '.join(MEASURES)}"
            )
    # One device for each core, as `bcgc sweep` has them; too late in a process that has
    # computed already.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", usable_cores())
    results = []
    points = []
    skipped = False
    for name in chosen:
        print(
            f"measuring {name}: {_summary(MEASURES[name])}", file=sys.stderr, flush=True
        )
        try:
            rows = MEASURES[name]()
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


def _parser() -> Parser:
    names = "\n".join(
        f"  {name:<16}{_summary(measure)}" for name, measure in MEASURES.items()
    )
    example = "example:\n  python -m benchmarks --out speed.json"
    parser = Parser(
        "python -m benchmarks",
        description=__doc__,
        epilog=f"measures:\n{names}\n\n{example}",
    )
    what = (
        "also write JSON to this file, and the scaling curves beside it as FILE.png "
        "and FILE.svg"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help=what)
    what = "a measure to run, again for more of them (default: all)"
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help=what
    )
    return parser


def _summary(measure: Callable[..., Any]) -> str:
    return (inspect.getdoc(measure) or "").partition("\n")[0]


def seconds_text(seconds: float) -> str:
    """A time of four characters or so with its unit.

    >>> seconds_text(0.0000123), seconds_text(0.0456), seconds_text(31.27)
    ('12.3 µs', '45.6 ms', '31.3 s')
    """
    sizes = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
    unit = next((unit for unit, size in sizes.items() if seconds >= size), "µs")
    return f"{seconds / sizes[unit]:.3g} {unit}"


def print_table(
    results: Sequence[dict[str, Any]],
    points: Sequence[dict[str, Any]],
    facts: dict[str, Any],
) -> None:
    """Medians of every row, what they are compared with, and the scaling curves."""
    for measure, rows in grouped(results, lambda row: row["measure"]).items():
        print(
            f"\n{measure:<58}{'package':>10}{'peer':>10}{'ratio':>8}{'first call':>14}"
        )
        for row in rows:
            peer = ""
            ratio = ""
            if "peer" in row:
                peer = seconds_text(row["peer"]["median"])
                if row["ratio"] < 1000:
                    ratio = f"{row['ratio']:.3g}"
                else:
                    ratio = f"{row['ratio']:.0f}"
            what = f"{row['what']}, {row['dtype']}"
            times = f"{seconds_text(row['package']['median']):>10}{peer:>10}{ratio:>8}"
            print(f"{what:<58}{times}{seconds_text(row['package']['first_call']):>14}")
            if "peer" in row:
                text = f"against {row['against']}; {row['accuracy']}"
            else:
                text = row["accuracy"]
            text = text.replace(" %", "\u00a0%")  # no line starts with the sign
            print(
                textwrap.fill(
                    text, _WIDTH, initial_indent="    ", subsequent_indent="    "
                )
            )
    for curve, points_of_curve in grouped(points, lambda point: point["curve"]).items():
        heads = f"{'package':>12}{'first call':>14}{'gap or error':>14}"
        head = f"{points_of_curve[0]['x_name']:>12}{heads}"
        print(f"\n{'scaling: ' + curve:<28}{head}")
        for point in points_of_curve:
            gap = ""
            if point["gap"] is not None:
                gap = f"{point['gap']:.0e}"
            warm = seconds_text(point["seconds"])
            cold = seconds_text(point["first_call"])
            print(f"{'':28}{point['x']:>12}{warm:>12}{cold:>14}{gap:>14}")
    about = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in facts.items()
    )
    about = (
        "Times are medians; ratio is the peer's median through the package's. " + about
    )
    print(f"\n{textwrap.fill(about, _WIDTH)}")


if __name__ == "__main__":
    sys.exit(main())
