"""Which workers may be absent, so that those present store all data."""

from collections.abc import Collection

from bcgc_jax.steps.storage import Storage

_COUNTS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def missing(storage: Storage, present: Collection[int]) -> str:
    """What nobody present stores, in a sentence; nothing if all data are there.

    D subsets stored bear any D - 1 absent workers, and some sets of more.

    >>> storage = Storage((((0, 1), (0, 2)), ((1, 2), (1, 0)), ((2, 0), (2, 1))))
    >>> missing(storage, [1, 2])
    ''
    >>> missing(storage, [2]).partition(";")[0]
    'chunk 0 of subset 0 is stored by workers 0 and 1 alone, and both are absent'
    """
    present_workers = set(present)
    for subset, row in enumerate(storage.holders):
        lost = [
            chunk
            for chunk, holders in enumerate(row)
            if present_workers.isdisjoint(holders)
        ]
        if lost:
            holders = sorted(row[lost[0]])
            chunks = [chunk for chunk in lost if sorted(row[chunk]) == holders]
            verb = "are"
            if len(chunks) == 1:
                verb = "is"
            absent = len(storage.holders) - len(present_workers)
            return (
                f"{_named('chunk', chunks)} of subset {subset} {verb} stored by "
                f"{_named('worker', holders)} alone, and {_are_absent(len(holders))}; "
                f"store {_count(absent + 1)} subsets to bear any {_count(absent)}"
            )
    return ""


def _named(noun: str, numbers: list[int]) -> str:
    """Such as "chunks 2 and 5"."""
    *numerals, last = map(str, numbers)
    if numerals:
        return f"{noun}s {', '.join(numerals)} and {last}"
    return f"{noun} {last}"


def _are_absent(count: int) -> str:
    return {1: "it is absent", 2: "both are absent"}.get(count, "all are absent")


def _count(number: int) -> str:
    return _COUNTS.get(number, str(number))
