"""Says in the user's words what pydantic found wrong with a config.

Pydantic locates an error among its validators and describes the check that failed. A user wants the
key as written and what it would take, so both are looked up in the model's JSON schema.
"""

import difflib
import json
from collections.abc import Collection, Iterator, Sequence
from functools import reduce
from typing import Any

from pydantic import BaseModel, ValidationError

from engine.strict_yaml import parse_yaml

__all__ = ["KeyPath", "explain", "format_path", "show_value"]

KeyPath = tuple[str | int, ...]
_Schema = dict[str, Any]

_NOUNS = {
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "string": "text",
    "path": "a path",
    "array": "a list",
    "object": "a section",
    "null": "null",
}
_LIMITS = {
    "exclusiveMinimum": "> {}",
    "minimum": ">= {}",
    "exclusiveMaximum": "< {}",
    "maximum": "<= {}",
    "minLength": "of at least {} characters",
    "maxLength": "of at most {} characters",
    "minItems": "of at least {} items",
    "maxItems": "of at most {} items",
}
_LIMIT_ERRORS = ("_than", "_than_equal", "_short", "_long")
_TYPE_ERRORS = ("_type", "literal_error")
_TYPE_NAMES = {bool: " (a boolean)", int: " (a whole number)", float: " (a number)"}
_MAX_SHOWN = 80


def explain(
    error: ValidationError, model: type[BaseModel], tree: Any
) -> Iterator[tuple[KeyPath, str]]:
    """Yield the path and a one-line message of each error.

    Args:
        error: what ``model`` raised for ``tree``.
        model: the root model.
        tree: the validated tree of JSON types.
    """
    schema = _ModelSchema(model)
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
            continue  # pydantic counts only the items that passed; the others have their own errors
        yield _explain_one(detail, schema, tree)


def _explain_one(detail: Any, schema: "_ModelSchema", tree: Any) -> tuple[KeyPath, str]:
    kind, location = detail["type"], detail["loc"]
    if location[-1:] == ("[key]",):
        return schema.locate(location[:-1])[0], f"not allowed as a key: {detail['msg']}"
    path, node, is_whole = schema.locate(location)
    if kind in ("value_error", "assertion_error"):
        return path, str(detail["ctx"]["error"])
    if kind == "extra_forbidden" and is_whole:
        section = schema.resolve(schema.locate(location[:-1])[1])
        return path, _unknown_key(str(path[-1]), section["properties"])
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        union = schema.resolve(node)["discriminator"]
        path += (union["propertyName"],)
        node = {"enum": list(union["mapping"])}
        kind = "missing" if kind == "union_tag_not_found" else "literal_error"
    expected = schema.describe(node)
    if kind == "missing" and is_whole:
        return path, f"missing; expected {expected}"
    if kind.endswith(_TYPE_ERRORS) or not is_whole:
        found = reduce(lambda branch, part: branch[part], path, tree)
        return path, _wrong_type(found, schema.members(node), expected)
    found = show_value(detail["input"])
    if kind == "finite_number":
        return path, f"found {found}, expected a finite number"
    if kind.endswith(_LIMIT_ERRORS):
        return path, f"found {found}, expected {expected}"
    return path, f"found {found}: {detail['msg']}"


def format_path(path: KeyPath) -> str:
    """Write a path as users do, such as ``optim.betas[1]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def show_value(value: Any) -> str:
    """Write a JSON value on one line of bounded length."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


class _ModelSchema:
    """Finds and describes the parts of a model's JSON schema."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._root = model.model_json_schema()

    def locate(self, location: Sequence[str | int]) -> tuple[KeyPath, _Schema, bool]:
        """Turn pydantic's location into the user's path and the schema there.

        Pydantic adds the name of the union's member that it tried. The tag of a discriminated union
        is followed and left out. In any other union the user named no member, so the path ends with
        the union itself; the last value returned is False then.
        """
        path: list[str | int] = []
        node = self._root
        for part in location:
            node = self.resolve(node)
            tags = node.get("discriminator", {}).get("mapping", {})
            if part in tags:
                node = {"$ref": tags[part]}
            elif "anyOf" in node:
                return tuple(path), node, False
            else:
                path.append(part)
                node = _child(node, part)
        return tuple(path), node, True

    def resolve(self, node: _Schema) -> _Schema:
        """Follow references, and the one member of ``X | None`` that is not null."""
        while True:
            members = [item for item in node.get("anyOf", ()) if item.get("type") != "null"]
            if len(members) == 1:
                node = members[0]
            elif "$ref" in node:
                node = self._root["$defs"][node["$ref"].rpartition("/")[2]]
            else:
                return node

    def members(self, node: _Schema) -> list[_Schema]:
        """Return the alternatives that a value may match, unions taken apart."""
        if "$ref" in node:
            node = self.resolve(node)
        union = node.get("anyOf", node.get("oneOf"))
        return [node] if union is None else [leaf for item in union for leaf in self.members(item)]

    def describe(self, node: _Schema) -> str:
        """Say which values the schema takes."""
        return " or ".join(dict.fromkeys(map(self._describe_member, self.members(node))))

    def _describe_member(self, node: _Schema) -> str:
        if choices := _choices(node):
            return " or ".join(map(show_value, choices))
        if "prefixItems" in node:
            return f"a list [{', '.join(map(self.describe, node['prefixItems']))}]"
        noun = _NOUNS.get(node.get("format", ""), _NOUNS.get(node.get("type", ""), "another value"))
        limits = [text.format(node[key]) for key, text in _LIMITS.items() if key in node]
        items = f"(each item {self.describe(node['items'])})" if "items" in node else ""
        return " ".join(filter(None, (noun, " and ".join(limits), items)))


def _child(node: _Schema, part: str | int) -> _Schema:
    if isinstance(part, int):
        fixed = node.get("prefixItems", [])
        return fixed[part] if part < len(fixed) else node.get("items", {})
    return node.get("properties", {}).get(part) or node.get("additionalProperties") or {}


def _choices(node: _Schema) -> list[Any]:
    return node.get("enum") or ([node["const"]] if "const" in node else [])


def _unknown_key(key: str, allowed: Collection[str]) -> str:
    near = difflib.get_close_matches(key.lower(), allowed, n=1)
    question = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown key; {question}allowed: {', '.join(allowed)}"


def _wrong_type(found: Any, members: Collection[_Schema], expected: str) -> str:
    shown = show_value(found) + _TYPE_NAMES.get(type(found), "")
    choices = [choice for node in members for choice in _choices(node) if isinstance(choice, str)]
    takes_any_text = any(node.get("type") == "string" and not _choices(node) for node in members)
    hint = ""
    if isinstance(found, str):
        if near := difflib.get_close_matches(found.lower(), choices, n=1):
            hint = f"; did you mean '{near[0]}'?"
        elif isinstance(parse_yaml(found).tree, int | float):
            shown, hint = f"text {shown}", "; remove the quotes"
    elif takes_any_text and not isinstance(found, list | dict):
        # A shell takes one pair of quotes for itself.
        hint = f"""; put it in quotes: "{json.dumps(found)}", in a shell '"{json.dumps(found)}"'"""
    return f"found {shown}, expected {expected}{hint}"
