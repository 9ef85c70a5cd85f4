"""Settings as flags of the command line, made from their declaration in config.py, and read back."""

import argparse
from collections.abc import Collection
from typing import Any, get_args

from deepdoctor.config import Config, DatasetConfig

EMPTY = ("none", "all", "")


def add_settings(
    target: argparse.ArgumentParser, config: type[Config], prefix: str, flags: dict[str, str] | None = None, without: Collection[str] = ()
) -> None:
    """A flag for each setting of `config`, kept as `<prefix>_<setting>`. Values are checked by the configuration, not here.

    Flags are named after the setting, or as `flags` says; those of DatasetConfig carry `--dataset-` before the name.
    """
    group = target.add_argument_group(f"{prefix} settings")
    for name, field in config.model_fields.items():
        if name in without:
            continue
        plain = f"--{'dataset-' if config is DatasetConfig else ''}{name.replace('_', '-')}"
        flag, told = (flags or {}).get(name, plain), f"{field.title}. {field.description} (default: {field.default})".replace("%", "%%")
        more: dict[str, Any] = {"metavar": _metavar(field.annotation)}
        if field.annotation is bool:
            more = {"action": argparse.BooleanOptionalAction}
        elif "tuple" in str(field.annotation):
            more = {"action": "append", "metavar": "TEXT"}
        group.add_argument(flag, dest=f"{prefix}_{name}", default=None, help=told, **more)


def settings_given(options: argparse.Namespace, config: type[Config], prefix: str) -> dict[str, Any]:
    """The settings of `config` that were given as flags; "none" and "all" empty a setting that may be empty."""
    found = {name: getattr(options, f"{prefix}_{name}", None) for name in config.model_fields}
    may_be_empty = {name for name, field in config.model_fields.items() if type(None) in get_args(field.annotation)}
    return {name: None if name in may_be_empty and value in EMPTY else value for name, value in found.items() if value is not None}


def _metavar(annotation: Any) -> str:
    if choices := [str(choice) for choice in get_args(annotation) if choice and not isinstance(choice, type)]:
        return f"{{{','.join(choices)}}}"
    return {int: "N", float: "X"}.get(annotation, "TEXT" if "str" in str(annotation) else "N")
