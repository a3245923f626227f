"""What the installed package says of itself."""

import re
from importlib.metadata import metadata, version
from pathlib import Path

import bcgc_jax as bcgc


def test_the_version_is_that_of_the_metadata():
    assert bcgc.__version__ == version("bcgc-jax")


def test_the_package_is_marked_as_typed():
    assert (Path(bcgc.__file__).parent / "py.typed").is_file()


def test_what_is_to_be_installed_can_be():
    root = Path(bcgc.__file__).parents[1]
    folders = (root / name for name in ("bcgc_jax", "experiments", "benchmarks"))
    texts = [path.read_text("utf-8") for folder in folders for path in folder.rglob("*.py")]
    # The package is on no index: what works is said in one place.
    assert not [text for text in texts if "bcgc-jax[" in text]
    named = {extra for text in texts for extra in re.findall(r"to_install\([\"'](\w+)[\"']\)", text)}
    known = set(metadata("bcgc-jax").get_all("Provides-Extra") or ())
    assert {"cli", "cluster", "parquet", "plot", "train"} <= named <= known
