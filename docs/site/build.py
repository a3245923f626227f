"""The pages and the reference as a website: `python docs/site/build.py FOLDER`.

The pages are those of the repository, with whatever they link to. A reference page for
each public package is made from its docstrings. Links that lead nowhere end the build.
"""

import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

SITE = Path(__file__).parent
ROOT = SITE.parents[1]
PACKAGES = (
    "bcgc_jax",
    *(
        "bcgc_jax.distributions",
        "bcgc_jax.traces",
        "bcgc_jax.diagnosis",
        "bcgc_jax.plans",
        "bcgc_jax.solvers",
    ),
    *(
        "bcgc_jax.sweeps",
        "bcgc_jax.coding",
        "bcgc_jax.balancing.dispatch",
        "bcgc_jax.balancing.compiled",
    ),
)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)\"")


def pages() -> list[Path]:
    """The repository's pages, relative to its root."""
    named = [Path(name) for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [
        *named,
        *sorted(page.relative_to(ROOT) for page in (ROOT / "docs").glob("*.md")),
    ]


def linked(page: Path) -> list[Path]:
    """The files that a page links to, relative to the root."""
    targets = [
        "".join(groups) for groups in LINK.findall((ROOT / page).read_text("utf-8"))
    ]
    local = [
        target for target in targets if "://" not in target and "mailto:" not in target
    ]
    files = [(ROOT / page.parent / target).resolve() for target in local]
    return [file.relative_to(ROOT) for file in files if file.is_file()]


def reference(name: str) -> str:
    """The page of a package: its docstring, and each public name that `bcgc_jax` does
    not have.
    """
    module = importlib.import_module(name)
    names = public_names(module)
    if name != "bcgc_jax":
        names = sorted({*names} - {*importlib.import_module("bcgc_jax").__all__})
    lines = [f"# `{name}`", "", module.__doc__ or "", ""]
    for public in names:
        value = getattr(module, public)
        if not isinstance(value, ModuleType):
            lines += [f"::: {value.__module__}.{value.__qualname__}", ""]
    return "\n".join(lines)


def public_names(module: ModuleType) -> list[str]:
    imported = [
        name for name, value in vars(module).items() if hasattr(value, "__qualname__")
    ]
    return sorted(
        getattr(module, "__all__", [name for name in imported if name[0] != "_"])
    )


def stage(folder: Path) -> None:
    """Put together what the website is built of."""
    for page in pages():
        for file in {page, *linked(page)}:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, folder / file)
    for name in PACKAGES:
        page = folder / "reference" / f"{name}.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(reference(name), "utf-8")


def build(out: Path) -> None:
    """Raises CalledProcessError where a link or a docstring is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mkdocs.yml", "doctests.py"):
            shutil.copyfile(SITE / name, Path(folder) / name)
        stage(Path(folder) / "pages")
        (Path(folder) / "bcgc_jax").symlink_to(ROOT / "bcgc_jax")
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]
        subprocess.run([*command, str(out.resolve())], cwd=folder, check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/site/build.py FOLDER")
    build(Path(sys.argv[1]))
