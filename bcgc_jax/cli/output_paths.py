"""Where answers go is looked at before the work for them begins: no minutes are lost at the end."""

import os
from collections.abc import Sequence
from pathlib import Path


def check_file(option: str, path: str | os.PathLike[str] | None, suffixes: Sequence[str] = ()) -> None:
    """ValueError where a file cannot be written to `path`, or its name ends in none of the `suffixes`."""
    if path is None:
        return
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} must end in {' or '.join(suffixes)}, got {path}")
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir():
        raise ValueError(f"{option}: cannot write {path}: name a file in a folder that is there")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{option}: cannot write {path}: permission denied")
