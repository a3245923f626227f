"""The schemes by name."""

from importlib import import_module

from bcgc_jax.schemes.base import Resources, Scheme

# What `advise` replays, the cheapest of those that may be advised first: files in this folder, and
# classes, imported when they are used. A help text needs no NumPy.
ADVISED = (
    "unplanned.Limit",
    "beforehand.Dealt",
    "sharing.Sharing",
    "beforehand.Shares",
    "beforehand.Anew",
    "unplanned.Nothing",
    "beforehand.Replaced",
    "inexact.Backup",
    "inexact.Drop",
)


def possible(resources: Resources) -> dict[str, Scheme]:
    """The schemes that are possible in a log, by name, the cheapest first.

    >>> [name for name in possible(Resources(3, stored_subsets=2)) if name.startswith("sharing")]
    ['sharing:2']
    """
    rows: list[Scheme] = []
    for where in ADVISED:
        file, _, name = where.partition(".")
        kind: type[Scheme] = getattr(import_module(f"bcgc_jax.schemes.{file}"), name)
        rows += kind.rows(resources)
    return {row.name: row for row in rows}
