"""Python in a process of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def python(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """What became of a script, or of `-m MODULE ARGS`."""
    typed = args if args[0] == "-m" else ("-c", *args)
    return subprocess.run(
        [sys.executable, *typed], capture_output=True, text=True, check=False, **options
    )
