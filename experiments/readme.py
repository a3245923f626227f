"""Update the README's output: its Python examples, and parts of the advice on its log.

`python -m experiments.readme` writes the output into README.md.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).parents[1] / "README.md"
LEFT_OUT = "…"
# A block of code, and the block of its answer behind it.
ANSWERED = re.compile(
    r"^```(python|sh)\n(.*?)^```\n\n```\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


def excerpt(printed: str) -> str:
    """The first two paragraphs of an advice, and the last one."""
    lines = "\n".join(line.rstrip() for line in printed.splitlines())
    first, second, *_, last = lines.split("\n\n")
    return f"{first}\n\n{second}\n{LEFT_OUT}\n{last}\n"


def printed_anew(text: str) -> str:
    """The page `text` with the answers of today."""

    def answered(block: re.Match[str]) -> str:
        language, code, old_answer = block.groups()
        printed = _run(["-c", code] if language == "python" else _arguments(code))
        answer = printed
        if language != "python":
            answer = excerpt(printed)
        return block[0].removesuffix(f"{old_answer}```") + f"{answer}```"

    return ANSWERED.sub(answered, text)


def _arguments(typed: str) -> list[str]:
    return ["-m", "bcgc_jax", *shlex.split(typed)[1:]]


def _run(arguments: list[str]) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=FILE.parent, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


if __name__ == "__main__":
    FILE.write_text(printed_anew(FILE.read_text("utf-8")), "utf-8")
