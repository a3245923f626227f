"""The schemes by name: what each is called, how it is drawn, and the works behind it.

Nothing here needs NumPy: a help text is printed at once.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

from bcgc_jax.balancing.scheme import Resources, Scheme


class Style(NamedTuple):
    """The look of one scheme."""

    label: str
    color: str
    marker: Any
    line: Any = "-"
    width: float = 1.5


class About(NamedTuple):
    """What is said of a scheme.

    Attributes:
      works: behind it, their keys in `citations`.
      look: in figures; None: plain grey.
      solver: file and class in `bcgc_jax.solvers` that plan it, imported when they are
        used; "" for closed forms.
      alone: whether its word alone is a name that `solve` knows.
    """

    works: tuple[str, ...] = ()
    look: Style | None = None
    solver: str = ""
    alone: bool = True


_DOTTED = (0, (1.5, 1.5))
# The paper's comparison has its own schemes and those of Tandon et al. and of Ferdinand
# and Draper.
_PAPER = ("wang2021",)
_TANDON = (*_PAPER, "tandon2017")
_FERDINAND = (*_PAPER, "ferdinand2018")
# Okabe and Ito's palette, told apart by colour-blind readers; the line patterns and the
# markers tell the schemes apart without any colour. The proposed schemes are solid, the
# baselines are not. Two are wide, so that they show under a curve that often coincides:
# the subgradients', full replication's.
ABOUT: Mapping[str, About] = {
    "optimal": About(
        _PAPER, Style("optimal", "#000000", "o", "-", 2.6), solver="optimum.Optimal"
    ),
    "subgradient": About(
        (*_PAPER, "shamir2013"),
        Style("stochastic subgradient", "#0072B2", "*"),
        solver="subgradient.Subgradient",
    ),
    "time": About(_PAPER, Style(r"$\mathbf{x}^{(\mathrm{t})}$ (time)", "#D55E00", "s")),
    "frequency": About(
        _PAPER, Style(r"$\mathbf{x}^{(\mathrm{f})}$ (frequency)", "#009E73", "^")
    ),
    "deadline": About(
        (*_PAPER, "wang2023", "birgin2000"),
        Style("most probably in time", "#DDAA33", (6, 2, 0), "-", 2.6),
        solver="deadline.Deadline",
    ),
    "nested": About(
        (*_TANDON, "ozfatura2019", "lewis2013"),
        Style("nested groups, no code", "#117733", (6, 1, 0), "-", 2.6),
        solver="nested.Nested",
    ),
    "sharing": About(
        (
            *("wang2016", "attia2017", "amiri2019", "harlap2016"),
            *("polychronopoulos1987", "hummel1992", "copeland1989"),
        ),
        Style("work sharing", "#4477AA", "p", (0, (3, 1, 1, 1)), 2.0),
        solver="sharing.Sharing",
    ),
    "uncoded": About(_TANDON, Style("uncoded", "#999933", "h", (0, (8, 3)))),
    "single_block": About(
        _TANDON, Style("single block", "#CC79A7", "D", (0, (2, 0.8)), 3.0)
    ),
    "tandon_partial": About(
        _TANDON,
        Style("Tandon et al., partial", "#E69F00", "v", "-."),
        solver="baselines.TandonPartial",
    ),
    "ferdinand_full": About(
        _FERDINAND, Style(r"Ferdinand–Draper, $r = L$", "#56B4E9", "P", _DOTTED)
    ),
    "ferdinand_half": About(
        _FERDINAND,
        Style(r"Ferdinand–Draper, $r = L/2$", "#7F7F7F", "X", (0, (6, 2, 1, 2, 1, 2))),
    ),
    "backup": About(
        ("chen2016",),
        Style("backup workers (inexact)", "#BBBBBB", "3", (0, (5, 5))),
        solver="baselines.Backup",
    ),
    "drop": About(
        ("giladi2023",),
        Style("stop at a threshold (inexact)", "#882255", "4", (0, (2, 2))),
        solver="drop.Drop",
    ),
    "limit": About(
        ("attia2017",),
        Style("limit of any scheme", "#7B4B2A", "None", _DOTTED),
        solver="limit.Limit",
    ),
    "tandon": About(_TANDON, solver="baselines.Tandon", alone=False),
    "ferdinand": About(_FERDINAND, solver="baselines.Ferdinand", alone=False),
    "cyclic": About(
        ("amiri2019",),
        Style("cyclic, no code", "#228833", "+", (0, (7, 1.5))),
        solver="cyclic.Cyclic",
        alone=False,
    ),
    # Closed forms of studies.
    "equal_risk": About(
        look=Style(
            "equal risk (closed form)", "#CC3311", (4, 1, 45), (0, (5, 1, 1, 1, 1, 1))
        ),
        alone=False,
    ),
    "large_deadline": About(
        look=Style("large deadline (journal)", "#0099AA", (5, 1, 36), (0, (4, 2))),
        alone=False,
    ),
}
PROPOSED = ("optimal", "subgradient", "time", "frequency")
BASELINES = (
    "uncoded",
    "single_block",
    "tandon_partial",
    "ferdinand_full",
    "ferdinand_half",
)
# Workers that store two subsets, or all data.
SHARED = ("sharing:2", "sharing:all")
# Names that may have a number.
NUMBERED = (
    "tandon",
    "ferdinand",
    "cyclic",
    "backup",
    "drop",
    "sharing",
    "nested",
    "limit",
)
# Names of old, schedules of several blocks: work sharing with as much data stored
# replaces them.
REPLACED = ("alternating", "multi_message")
ALONE = tuple(word for word, about in ABOUT.items() if about.alone)
METHODS = ", ".join([*ALONE, *(f"{word}:NUMBER" for word in NUMBERED)])


def about(name: str) -> About:
    """What is said of the scheme of this name; nothing of a user's own.

    >>> about("tandon:3").works
    ('wang2021', 'tandon2017')
    """
    return ABOUT.get(name.partition(":")[0], About())


# What `advise` replays, the cheapest of those that may be advised first: files in this
# folder, and classes, imported when they are used.
ADVISED = (
    "remedies.Limit",
    "remedies.HostLimit",
    "remedies.Sorted",
    "remedies.AlikeRows",
    "remedies.Dealt",
    "remedies.DealtEqual",
    "remedies.Sharing",
    "remedies.Shares",
    "remedies.Anew",
    "remedies.Nothing",
    "remedies.Replaced",
    "remedies.Backup",
    "remedies.Drop",
)


def possible(resources: Resources) -> dict[str, Scheme]:
    """The schemes that are possible in a log, by name, the cheapest first.

    >>> [
    ...     name
    ...     for name in possible(Resources(3, stored_subsets=2))
    ...     if name.startswith("sharing")
    ... ]
    ['sharing:2']
    """
    rows: list[Scheme] = []
    for where in ADVISED:
        file, _, name = where.partition(".")
        kind: type[Scheme] = getattr(import_module(f"bcgc_jax.balancing.{file}"), name)
        rows += kind.rows(resources)
    return {row.name: row for row in rows if row.possible(resources)}
