"""A validator of what `bcgc_jax/cli/output.schema.json` is written in: a part of JSON Schema 2020-12."""

import json
from importlib import resources
from typing import Any

SCHEMA = json.loads(resources.files("bcgc_jax.cli").joinpath("output.schema.json").read_text("utf-8"))
_NOTES = {"$schema", "$defs", "title", "description", "unit"}
_TYPES = {
    "object": lambda x: isinstance(x, dict),
    "array": lambda x: isinstance(x, list),
    "string": lambda x: isinstance(x, str),
    "boolean": lambda x: isinstance(x, bool),
    "integer": lambda x: isinstance(x, int) and not isinstance(x, bool),
    "number": lambda x: isinstance(x, int | float) and not isinstance(x, bool),
    "null": lambda x: x is None,
}


def strict_json(text: str) -> Any:
    """JSON as the standard has it: without NaN and Infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def problems(name: str, value: Any) -> list[str]:
    """What is wrong with `value` as the output `name`; nothing where it is as the schema says."""
    return _problems(SCHEMA["$defs"][name], value, name)


def _problems(schema: dict[str, Any], value: Any, at: str) -> list[str]:
    unknown = set(schema) - _NOTES - _CHECKS.keys()
    assert not unknown, f"the validator does not know {unknown}"
    return [text for word, check in _CHECKS.items() if word in schema for text in check(schema, value, at)]


def _ref(schema: dict[str, Any], value: Any, at: str) -> list[str]:
    return _problems(SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, at)


def _type(schema: dict[str, Any], value: Any, at: str) -> list[str]:
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return [] if any(_TYPES[kind](value) for kind in kinds) else [f"{at}: {value!r} is no {kinds}"]


def _enum(schema: dict[str, Any], value: Any, at: str) -> list[str]:
    return [] if value in schema["enum"] else [f"{at}: {value!r} is none of {schema['enum']}"]


def _const(schema: dict[str, Any], value: Any, at: str) -> list[str]:
    return [] if value == schema["const"] else [f"{at}: {value!r} is not {schema['const']!r}"]


def _any_of(schema: dict[str, Any], value: Any, at: str) -> list[str]:
    found = [_problems(one, value, at) for one in schema["anyOf"]]
    return [text for one in found for text in one] if all(found) else []


def _items(schema: dict[str, Any], value: Any, at: str) -> list[str]:
    if not isinstance(value, list):
        return []
    return [text for i, item in enumerate(value) for text in _problems(schema["items"], item, f"{at}[{i}]")]


def _least(schema: dict[str, Any], value: Any, at: str) -> list[str]:
    return [f"{at}: too few"] if isinstance(value, list) and len(value) < schema["minItems"] else []


def _most(schema: dict[str, Any], value: Any, at: str) -> list[str]:
    return [f"{at}: too many"] if isinstance(value, list) and len(value) > schema["maxItems"] else []


def _required(schema: dict[str, Any], value: Any, at: str) -> list[str]:
    lacks = [] if not isinstance(value, dict) else [name for name in schema["required"] if name not in value]
    return [f"{at}: {name} is missing" for name in lacks]


def _properties(schema: dict[str, Any], value: Any, at: str) -> list[str]:
    """Each by its own schema, those without one by `additionalProperties`."""
    if not isinstance(value, dict):
        return []
    own, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
    found = []
    for name, entry in value.items():
        here = f"{at}.{name}"
        if name in own:
            found += _problems(own[name], entry, here)
        elif rest is False:
            found.append(f"{here} is not in the schema")
        elif rest is not True:
            found += _problems(rest, entry, here)
    return found


_CHECKS = {
    "$ref": _ref,
    "type": _type,
    "enum": _enum,
    "const": _const,
    "anyOf": _any_of,
    "items": _items,
    "minItems": _least,
    "maxItems": _most,
    "required": _required,
    "properties": _properties,
    "additionalProperties": lambda schema, value, at: (
        [] if "properties" in schema else _properties(schema, value, at)
    ),
}
