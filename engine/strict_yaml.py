"""YAML as people mean it: scalars by the core schema of YAML 1.2, nothing silently lost.

PyYAML follows YAML 1.1, where ``1e-3`` is text, ``no`` a boolean, ``010`` eight and ``1:30``
ninety; of two equal keys it drops the first. Here ``1e-3`` is a number, only ``true`` and
``false`` are booleans, and a repeated key is a problem with its line.
Source: YAML 1.2.2, section 10.3.2 (tag resolution of the core schema).
"""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

__all__ = ["Parsed", "dump_yaml", "parse_yaml"]

_TAG = "tag:yaml.org,2002:"
_INT_BASES = {"0o": 8, "0x": 16}
_CORE_SCHEMA = {
    "null": r"null|Null|NULL|~|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_PATTERNS = {_TAG + name: re.compile(rf"(?:{pattern})\Z") for name, pattern in _CORE_SCHEMA.items()}
_CONVERSIONS = {
    _TAG + "null": lambda text: None,
    _TAG + "bool": lambda text: text.lower() == "true",
    _TAG + "int": lambda text: int(text, _INT_BASES.get(text[:2], 10)),
    # YAML writes .inf and .nan, Python inf and nan; the dot of a number stays.
    _TAG + "float": lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
}


@dataclass(frozen=True)
class Parsed:
    """What a text holds.

    Attributes:
        tree: dicts with text keys, lists, str, bool, int, float, None; None after a syntax error.
        problems: (line counted from 1, what is wrong on one line) for each thing found.
    """

    tree: Any
    problems: list[tuple[int, str]] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """Knows the core schema's tags and no others."""

    yaml_implicit_resolvers = {}
    yaml_constructors = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated_keys: list[tuple[int, str]] = []

    def build_scalar(self, node: yaml.ScalarNode) -> Any:
        if not _PATTERNS[node.tag].match(node.value):  # an explicit tag, such as !!int text
            kind = node.tag.removeprefix(_TAG)
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} is not of type {kind}", node.start_mark
            )
        return _CONVERSIONS[node.tag](node.value)

    def build_text(self, node: yaml.ScalarNode) -> str:
        return str(node.value)

    def build_list(self, node: yaml.SequenceNode) -> list[Any]:
        return [self.construct_object(item, deep=True) for item in node.value]

    def build_mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be plain text", key_node.start_mark
                )
            key = key_node.value  # as written, so that the key `on` or `1` stays text
            if key in tree:
                self.repeated_keys.append(
                    (line, f"key '{key}' is given twice, first in line {first_lines[key]}")
                )
            first_lines.setdefault(key, line)
            tree[key] = self.construct_object(value_node, deep=True)
        return tree

    def refuse(self, node: yaml.Node) -> None:
        raise yaml.constructor.ConstructorError(
            None, None, f"tag {node.tag!r} is not allowed", node.start_mark
        )


class _Dumper(yaml.SafeDumper):
    """Quotes each text that YAML 1.1 or 1.2 would read as something else."""


for _tag, _pattern in _PATTERNS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, None)
    _Loader.add_constructor(_tag, _Loader.build_scalar)
    _Dumper.add_implicit_resolver(_tag, _pattern, None)
_Loader.add_constructor(_TAG + "str", _Loader.build_text)
_Loader.add_constructor(_TAG + "seq", _Loader.build_list)
_Loader.add_constructor(_TAG + "map", _Loader.build_mapping)
_Loader.add_constructor(None, _Loader.refuse)
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence(_TAG + "seq", items, flow_style=True)
)


def parse_yaml(text: str) -> Parsed:
    """Read one YAML document; wrong text is returned as problems, not raised."""
    try:
        loader = _Loader(text)
        tree = loader.get_single_data()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return Parsed(None, [(line, f"character {chr(error.character)!r} is not allowed")])
    except yaml.MarkedYAMLError as error:
        return Parsed(None, [_explain(error)])
    return Parsed(tree, loader.repeated_keys)


def dump_yaml(tree: Any) -> str:
    """Write a tree of JSON types; YAML 1.1 and 1.2 readers get the same tree back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _explain(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    mark = error.problem_mark or error.context_mark
    message = error.problem or "not valid YAML"
    if error.context and error.context_mark:
        message = f"{error.context} from line {error.context_mark.line + 1}: {message}"
    return (mark.line + 1 if mark else 1), message
