"""What the installed package says of itself."""

from importlib.metadata import version
from pathlib import Path

import bcgc_jax as bcgc


def test_the_version_is_that_of_the_metadata():
    assert bcgc.__version__ == version("bcgc-jax")


def test_the_package_is_marked_as_typed():
    assert (Path(bcgc.__file__).parent / "py.typed").is_file()
