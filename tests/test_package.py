"""What the package says of itself, installed and in its source tree."""

import re
import tomllib
from importlib import import_module
from importlib.metadata import metadata, version
from pathlib import Path

import pytest

import bcgc_jax as bcgc
from bcgc_jax._removed import ATTRIBUTES
from bcgc_jax.citations import bibliography

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.smoke

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version_everywhere():
    (cited,) = re.findall(
        r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE
    )
    newest, *_ = re.findall(
        r"^## \[(.+)\] - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert (
        PROJECT["version"] == bcgc.__version__ == cited == newest == version("bcgc-jax")
    )


def test_the_licence_is_the_one_that_is_named():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0" in text
    assert "Copyright 2026 the bcgc_jax authors" in text
    (cited,) = re.findall(
        r"^license: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE
    )
    assert PROJECT["license"] == cited == "Apache-2.0"


def test_the_paper_and_its_journal_version_are_cited_alike():
    works = bibliography("deadline", sampled_bound=False).split("\n\n")
    file = (ROOT / "CITATION.cff").read_text()
    _, *references = file.partition("\nreferences:")[2].split("  - type: ")
    for work, reference in zip(works, references, strict=False):
        authors = zip(
            re.findall(r"family-names: (.+)", reference),
            re.findall(r"given-names: (.+)", reference),
            strict=True,
        )
        (title,) = re.findall(r"^ +title: (.+)$", reference, re.MULTILINE)
        (year,) = re.findall(r"^ +year: (.+)$", reference, re.MULTILINE)
        (number,) = re.findall(
            r"(?:doi: |arxiv.org/abs/)(.+)$", reference, re.MULTILINE
        )
        paper = " ".join(work.split())
        names = " and ".join(", ".join(name) for name in authors)
        assert f"author = {{{names}}}" in paper
        assert f"title = {{{title}}}" in paper
        assert f"year = {{{year}}}" in paper
        assert f"{{{number}}}" in paper
    assert len(references) == 2


def test_who_cites_the_package_cites_the_package():
    """CITATION.cff prefers no other work to the software; the paper is a reference."""
    file = (ROOT / "CITATION.cff").read_text()
    assert "preferred-citation" not in file
    before, paper = file.split("\nreferences:\n")
    assert 'title: "bcgc_jax' in before
    assert "10.1109/GLOBECOM46510.2021.9685858" in paper


def test_what_is_to_be_installed_can_be_and_has_its_types():
    root = Path(bcgc.__file__).parents[1]
    assert (root / "bcgc_jax" / "py.typed").is_file()
    folders = (root / name for name in ("bcgc_jax", "experiments", "benchmarks"))
    texts = [
        path.read_text("utf-8") for folder in folders for path in folder.rglob("*.py")
    ]
    # The package is on no index: what works is said in one place.
    assert not [text for text in texts if "bcgc-jax[" in text]
    named = {
        extra
        for text in texts
        for extra in re.findall(r"to_install\([\"'](\w+)[\"']\)", text)
    }
    extras = set(metadata("bcgc-jax").get_all("Provides-Extra") or ())
    assert {"cli", "cluster", "plot", "benchmarks"} <= named <= extras


@pytest.mark.parametrize("removed", sorted(ATTRIBUTES))
def test_a_name_that_was_removed_names_its_replacement(removed):
    module, _, name = removed.rpartition(".")
    with pytest.raises(AttributeError, match=re.escape(ATTRIBUTES[removed])):
        getattr(import_module(module), name)
