"""Every setting that a configuration may hold, from the fields that check them."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.settings import Config

__all__ = ["describe_settings"]

_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
_TYPES = {"boolean": "true | false", "integer": "whole number", "string": "text", "null": "null"}


def describe_settings(wanted: str = "") -> str:
    """A paragraph for each key: what is allowed, its default, what it does.

    Args:
        wanted: What the keys begin with, such as ``optim``, or a method's name; empty = all.
    """
    schema = Config.model_json_schema()
    return "\n".join(
        _paragraph(key, method, field, is_required=is_required)
        for key, method, field, is_required in _fields(schema, schema["$defs"])
        if key.startswith(wanted) or method == wanted
    )


def _fields(
    section: Mapping[str, Any], models: Mapping[str, Any], prefix: str = "", method: str = ""
) -> Iterator[tuple[str, str, Mapping[str, Any], bool]]:
    """Dotted key, method that has it, its JSON schema and whether it must be set."""
    for name, field in section["properties"].items():
        key = f"{prefix}{name}"
        if "discriminator" in field:
            for choice, path in field["discriminator"]["mapping"].items():
                yield from _fields(models[_model(path)], models, f"{key}.", choice)
        elif "$ref" in field:
            yield from _fields(models[_model(field["$ref"])], models, f"{key}.", method)
        else:
            yield key, method, field, name in section.get("required", ())


def _paragraph(key: str, method: str, field: Mapping[str, Any], *, is_required: bool) -> str:
    facts = [_allowed(field)]
    if is_required:
        facts.append("required")
    elif "default" in field:
        facts.append(f"default {json.dumps(field['default'], ensure_ascii=False)}")
    text = f"{'; '.join(facts)}. {field.get('description', '')}".strip()
    title = f"{key} ({method})" if method else key
    return f"{title}\n{textwrap.indent(textwrap.fill(text, 92), '    ')}"


def _model(path: str) -> str:
    return path.rpartition("/")[2]


def _allowed(field: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    if "anyOf" in field:
        return " | ".join(_allowed(choice) for choice in field["anyOf"])
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    if field.get("format") == "path":
        return "path"
    kind = field.get("type", "value")
    if kind == "array":
        inner = [field["items"]] if "items" in field else field["prefixItems"]
        return f"list of {_allowed(inner[0])}"
    if kind == "object":
        return "mapping"
    bounds = [f"{sign} {field[name]:g}" for name, sign in _BOUNDS.items() if name in field]
    return " ".join([_TYPES.get(kind, kind), *bounds])
