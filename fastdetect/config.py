"""Configurations: pydantic defaults, a YAML file, `--set a.b=c`, then command-line options; what comes later wins."""

from collections.abc import Mapping, Sequence
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
        raise UsageError(f"{where}: {first['msg']}, got {first['input']!r}") from error


def save(config: BaseModel, path: Path) -> None:
    """Write a resolved configuration as YAML, so that `load` reads it again."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


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
