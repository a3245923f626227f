"""Where answers go is looked at before the work for them begins: no minutes are lost at the end.

Needs nothing but Python: the experiments and the benchmarks use it too.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

PICTURES = (".png", ".svg", ".pdf")


def check_file(option: str, path: str | os.PathLike[str], suffixes: Sequence[str] = ()) -> None:
    """ValueError, in one line that names the `option`, where a file cannot be written to `path`.

    Nothing is left behind. With `suffixes` the name must end in one of them.

    >>> check_file("--figure", "fit.gif", PICTURES)
    Traceback (most recent call last):
    ...
    ValueError: --figure must end in .png, .svg or .pdf, got fit.gif
    """
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        *most, last = suffixes
        raise ValueError(
            f"{option} must end in {' or '.join(filter(None, [', '.join(most), last]))}, got {path}"
        )
    folder = path.absolute().parent
    try:
        if path.is_dir():
            raise ValueError(f"{option}: {path} is a folder: name a file in it")
        if not folder.is_dir():
            raise ValueError(f"{option}: there is no folder {folder}")
        if path.is_file():
            path.open("ab").close()
        elif not path.exists():  # a pipe or a device would notice that it is opened
            _try_folder(folder)
    except OSError as error:
        raise ValueError(f"{option}: cannot write {path}: {error.strerror or error}") from None


def check_folder(option: str, path: str | os.PathLike[str]) -> None:
    """Make the folder `path` where it is missing; ValueError where files cannot be put there."""
    path = Path(path)
    try:
        if path.exists() and not path.is_dir():
            raise ValueError(f"{option}: {path} is a file, not a folder")
        path.mkdir(parents=True, exist_ok=True)
        _try_folder(path)
    except OSError as error:
        raise ValueError(f"{option}: cannot write to {path}: {error.strerror or error}") from None


def _try_folder(folder: Path) -> None:
    """OSError where no file can be made: permissions alone do not know of full disks and read-only ones."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")
