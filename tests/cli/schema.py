"""`bcgc_jax/cli/output.schema.json`: what of an output is not as it says."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, validators

import bcgc_jax.cli

FILE = Path(bcgc_jax.cli.__file__).with_name("output.schema.json")
SCHEMA = json.loads(FILE.read_text("utf-8"))
# The standard takes 1.0 for an integer; nobody should have to read it as one.
_TYPES = Draft202012Validator.TYPE_CHECKER.redefine(
    "integer", lambda _, x: type(x) is int
)
_Validator = validators.extend(Draft202012Validator, type_checker=_TYPES)


def strict_json(text: str) -> Any:
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def problems(name: str, value: Any) -> list[str]:
    """What is wrong with `value` as the output `name`."""
    schema = {"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{name}"}
    return [
        f"{error.json_path}: {error.message}"
        for error in _Validator(schema).iter_errors(value)
    ]
