"""Typed configs from YAML files and the command line; knows no section by name.

Strictness (no unknown key, no lossy conversion) is a matter of the loader, not of the models: they
stay plain pydantic models beside the component that they configure.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from engine.config_errors import KeyPath, explain, format_path, show_value
from engine.strict_yaml import dump_yaml, parse_yaml

__all__ = [
    "ConfigError", "differences", "dump_config", "fingerprint", "flat_settings", "load_config",
]  # fmt: skip

Model = TypeVar("Model", bound=BaseModel)
_COMMAND_LINE = "command line"


class ConfigError(ValueError):
    """A config that cannot be used; the message has one line for each thing wrong with it."""


def load_config(model: type[Model], path: Path, overrides: Sequence[str] = ()) -> Model:
    """Build a config: defaults of the model < YAML file < overrides.

    Args:
        model: the root model; each of its sections is a model itself.
        path: a YAML file whose top level is a mapping.
        overrides: ``section.key=value`` with the value in YAML, such as ``optim.lr=5e-4`` or
            ``optim.betas=[0.9, 0.95]``. The last one of a key wins.

    A path that begins with ``~`` leads to the home folder, wherever it is set.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong. All errors at once, each
            on a line that names file (or command line), key, what was found and what is allowed.
    """
    tree, problems = _read(path)
    changes, wrong_overrides = _parse_overrides(overrides)
    problems += wrong_overrides
    if tree is None:
        raise ConfigError("\n".join(problems))
    settings = tree
    for keys, value in changes:
        settings = _replaced(settings, keys, value)
    wrong: list[tuple[KeyPath, str]] = []
    try:
        config = model.model_validate_json(json.dumps(settings), strict=True, extra="forbid")
        config = _at_home(config, (), wrong)
    except ValidationError as error:
        wrong += explain(error, model, settings)
    for key_path, message in wrong:
        where = _origin(key_path, path, tree, [keys for keys, _ in changes])
        problems.append(": ".join(filter(None, [where, format_path(key_path), message])))
    if problems:
        # Members of a union that fail alike give equal lines.
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return config


def dump_config(config: BaseModel) -> str:
    """Write all settings as YAML in the order of the fields; ``load_config`` reads them back."""
    return dump_yaml(config.model_dump(mode="json"))


def fingerprint(config: BaseModel | Mapping[str, Any], exclude: Collection[str] = ()) -> str:
    """Hash the settings; equal configs have equal fingerprints.

    Args:
        config: a config, or the tree read from its dump.
        exclude: dotted keys, or whole sections, that do not count.

    Returns:
        SHA-256 as 64 hexadecimal digits.
    """
    text = json.dumps(flat_settings(config, exclude), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(
    old: BaseModel | Mapping[str, Any],
    new: BaseModel | Mapping[str, Any],
    exclude: Collection[str] = (),
) -> list[str]:
    """List the settings that differ, as ``optim.lr: 0.001 -> 0.0005``; arguments as above."""
    before, after = flat_settings(old, exclude), flat_settings(new, exclude)
    return [
        f"{key}: {before.get(key, '(absent)')} -> {after.get(key, '(absent)')}"
        for key in before | after
        if before.get(key) != after.get(key)
    ]


def _read(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the file's tree (None where there is nothing to go on with) and its problems."""
    try:
        parsed = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        return None, [f"{path}: cannot be read: {error.strerror}"]
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return None, [f"{path}:{line}: not UTF-8 text"]
    problems = [f"{path}:{line}: {message}" for line, message in parsed.problems]
    if isinstance(parsed.tree, dict):
        return parsed.tree, problems
    if not problems:
        found = "nothing" if parsed.tree is None else show_value(parsed.tree)
        problems = [f"{path}: found {found}, expected a mapping of sections ({{}}: all defaults)"]
    return None, problems


def _parse_overrides(overrides: Sequence[str]) -> tuple[list[tuple[KeyPath, Any]], list[str]]:
    changes: list[tuple[KeyPath, Any]] = []
    problems: list[str] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        keys = tuple(key.split("."))
        if not equals or not all(keys):
            problems.append(f"{_COMMAND_LINE}: found '{override}', expected section.key=value")
            continue
        parsed = parse_yaml(text)
        problems += [f"{_COMMAND_LINE}: {key}: {message}" for _, message in parsed.problems]
        if not parsed.problems:
            changes.append((keys, parsed.tree))
    return changes, problems


def _replaced(tree: Any, keys: KeyPath, value: Any) -> Any:
    """Return the tree with one value replaced; parts shared by YAML anchors stay untouched."""
    if not keys:
        return value
    section = tree if isinstance(tree, dict) else {}
    return {**section, keys[0]: _replaced(section.get(keys[0]), keys[1:], value)}


def _at_home(value: Any, keys: KeyPath, wrong: list[tuple[KeyPath, str]]) -> Any:
    """Return a setting with the home folder for the ``~`` of its paths, those inside it included.

    Where a user has no home folder, the key and a message go to ``wrong``.
    """
    if isinstance(value, Path):
        expanded = os.path.expanduser(value)
        if expanded.startswith("~"):
            wrong.append((keys, f"found '{value}', but {value.parts[0]} has no home folder"))
        return Path(expanded)
    if isinstance(value, BaseModel):
        update = {name: _at_home(item, (*keys, name), wrong) for name, item in value}
        return value.model_copy(update=update)
    if isinstance(value, dict):
        return {key: _at_home(item, (*keys, key), wrong) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([_at_home(item, (*keys, i), wrong) for i, item in enumerate(value)])
    return value


def _origin(path: KeyPath, file: Path, tree: Any, overridden: list[KeyPath]) -> str:
    """Say who set what stands at a path: the file with this tree, the command line, or both."""
    if any(path[: len(keys)] == keys for keys in overridden):
        return _COMMAND_LINE
    if not any(keys[: len(path)] == path for keys in overridden):
        return str(file)
    for part in path:
        if not isinstance(tree, dict) or part not in tree:
            return _COMMAND_LINE
        tree = tree[part]
    return f"{file} with {_COMMAND_LINE}"


def flat_settings(
    config: BaseModel | Mapping[str, Any], exclude: Collection[str] = ()
) -> dict[str, str]:
    """Map each dotted key that counts to its value, written as JSON; arguments as above."""
    tree = config.model_dump(mode="json") if isinstance(config, BaseModel) else config
    # A default may be 1 where a loaded file gives 1.0: the same setting.
    tree = json.loads(json.dumps(tree), parse_float=_integer_if_whole)
    return {
        key: json.dumps(value, sort_keys=True)
        for key, value in _flatten(tree, "")
        if not any(f"{key}.".startswith(f"{excluded}.") for excluded in exclude)
    }


def _integer_if_whole(text: str) -> int | float:
    number = float(text)
    return int(number) if number.is_integer() else number


def _flatten(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
