"""Print constraints for pip: the oldest version of each dependency that pyproject.toml
promises.
"""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())[
    "project"
]
for dependency in project["dependencies"]:
    name, version = dependency.split(">=")
    print(f"{name}=={version}")
