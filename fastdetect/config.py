"""Configurations: pydantic defaults, a YAML file, `--set a.b=c`, then command-line options; what comes later wins."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fastdetect.errors import UsageError

Config = TypeVar("Config", bound=BaseModel)


def load(
    kind: type[Config],
    path: Path | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> Config:
    """Put a configuration together.

    Args:
        kind: its pydantic model.
        path: YAML file of nested keys.
        overrides: "a.b=value", the value read as YAML.
        options: dotted key to value; None values are skipped.
    Raises:
        UsageError: the file cannot be read, or a key or value is not one of the configuration's.
    """
    values = _read_yaml(path) if path else {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise UsageError(f"--set {text}: wanted key=value, for example verdict.min_faces=5")
        try:
            _assign(values, key.strip(), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise UsageError(f"--set {text}: the value is not YAML") from error
    for key, chosen in (options or {}).items():
        if chosen is not None:
            _assign(values, key, chosen)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "configuration"
        if first["type"] == "extra_forbidden":
            raise UsageError(f"{where}: no such key{_advice(kind, [str(part) for part in first['loc']])}") from error
        if first["type"] == "missing":
            raise UsageError(
                f"{where}: not given; wanted --{where}, --set {where}=... or a --config with it"
            ) from error
        if first["type"] == "value_error":  # of our own: it says what was got
            raise UsageError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
        raise UsageError(f"{where}: {first['msg']}, got {first['input']!r}") from error


def save(config: BaseModel, path: Path) -> None:
    """Write a resolved configuration as YAML, so that `load` reads it again; an old one is replaced at once."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    partial.replace(path)


def _advice(kind: type[BaseModel], where: Sequence[str]) -> str:
    """The key that was probably meant, or all that there are beside it."""
    *parents, last = where
    for parent in parents:
        inner = kind.model_fields[parent].annotation if parent in kind.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):  # a list of groups, say
            return ""
        kind = inner
    near = get_close_matches(last, kind.model_fields, n=1)
    if near:
        return f"; did you mean {'.'.join([*parents, *near])}?"
    return f"; there are {', '.join(kind.model_fields)}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not a readable YAML file: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: wanted keys and values, got {type(values).__name__}")
    return values


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UsageError(f"{key}: {parent} is a value, not a group of keys")
    values[last] = value
