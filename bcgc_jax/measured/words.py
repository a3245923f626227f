"""Numbers of things in words."""


def counted(count: int, noun: str) -> str:
    """Return a number and its noun, in the plural but for 1.

    >>> counted(1, "step"), counted(0, "step"), counted(2, "subset")
    ('1 step', '0 steps', '2 subsets')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
