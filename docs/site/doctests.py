"""Examples of docstrings, `>>> …` up to an empty line, become blocks of code in the
reference.
"""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^([ ]*)>>> (?:.*\n?)(?:^(?![ ]*$).*\n?)*", re.MULTILINE)


def fenced(text: str) -> str:
    """The text with its examples in fences.

    >>> print(fenced("Adds.\\n\\n>>> 1 + 1\\n2"))
    Adds.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    """

    def block(example: re.Match[str]) -> str:
        return f"{example[1]}```pycon\n{example[0].rstrip()}\n{example[1]}```\n"

    return EXAMPLE.sub(block, text).rstrip()


class Doctests(griffe.Extension):
    """For mkdocstrings."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
