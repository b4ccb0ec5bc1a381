"""Between the settings of pdserve/config/ and the command line: one flag per field, one YAML key per flag."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import Field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from deploy.config_file import read_config_file
from deploy.plan_settings import plan_problems
from pdserve.byte_sizes import bytes_of
from pdserve.config import RouterConfig, ServeConfig, WorkerConfig
from pdserve.settings import ConfigError

_PARTS = (ServeConfig, RouterConfig, WorkerConfig)
_ONLY_YAML = {"slo_classes", "tenants", "tenant_keys"}
_NO_FLAG = {"model", "router", "worker", *_ONLY_YAML}  # positional, and parts
_ALONE = {"ray": "local"}  # what a flag means that is given without a value
_GROUPS = {ServeConfig: "cluster", RouterConfig: "front doors and router", WorkerConfig: "workers"}


def flag_name(setting: str) -> str:
    return "--" + setting.replace("_", "-")


def known_settings() -> set[str]:
    """Every name that a YAML file may use."""
    return {one.name for part in _PARTS for one in fields(part)} - {"router", "worker"}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """One flag per setting; what is not given is absent from the namespace, so that YAML and defaults can fill it."""
    for part in _PARTS:
        _add_group(parser, part)


def add_worker_settings(parser: argparse.ArgumentParser) -> None:
    """Those of the workers alone."""
    _add_group(parser, WorkerConfig)


def _add_group(parser: argparse.ArgumentParser, part: type) -> None:
    group = parser.add_argument_group(_GROUPS[part])
    for one in fields(part):
        if one.name not in _NO_FLAG:
            _add_flag(group, one, _kind(get_type_hints(part)[one.name]))


def _add_flag(group: argparse._ArgumentGroup, one: Field[Any], kind: type) -> None:
    text = one.metadata["help"].replace("%", "%%")
    if one.default not in (None, False, ()) and "default" not in text:
        text += f" (default: {'on' if one.default is True else one.default})"
    if kind is bool:
        group.add_argument(
            flag_name(one.name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
        )
        return
    if one.name in _ALONE:
        group.add_argument(
            flag_name(one.name),
            nargs="?",
            const=_ALONE[one.name],
            default=argparse.SUPPRESS,
            metavar="ADDRESS",
            help=text,
        )
        return
    if kind is tuple:
        group.add_argument(
            flag_name(one.name),
            action="append",
            default=argparse.SUPPRESS,
            metavar=one.name.upper(),
            help=text + "; may be given again for more",
        )
        return
    choices = one.metadata["choices"]
    metavar = "{" + ",".join(choices) + "}" if choices else {int: "N", float: "X"}.get(kind, one.name.upper())
    group.add_argument(flag_name(one.name), default=argparse.SUPPRESS, metavar=metavar, help=text)


def _kind(hint: Any) -> type:
    if get_origin(hint) is tuple:
        return tuple
    options = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    kind: type = next(option for option in options if option is not type(None))
    return kind


def worker_flags(given: Mapping[str, Any]) -> list[str]:
    """The workers' settings among `given` as a command line has them."""
    found = []
    for name in (one.name for one in fields(WorkerConfig) if one.name in given):
        value = given[name]
        if isinstance(value, bool):
            found.append(flag_name(name) if value else flag_name("no_" + name))
        else:
            found += [
                word for one in (value if isinstance(value, list) else [value]) for word in (flag_name(name), one)
            ]
    return [str(word) for word in found]


def serve_config(given: Mapping[str, Any], *files: Path | None) -> ServeConfig:
    """The whole configuration: command line over the files (--config, --plan), later ones first, over environment
    over defaults.

    Raises ConfigError with all problems at once, each naming where its value came from.
    """
    origins = {}
    values: dict[str, Any] = {}
    key = os.environ.get("PDSERVE_API_KEY")
    if key is not None:
        values["api_key"], origins["api_key"] = key, "PDSERVE_API_KEY"
    for flag, file in zip(("--config", "--plan"), files, strict=False):
        if file is not None:
            from_file = _read(flag, file)
            values |= from_file
            origins |= {name: f"{flag} {file}: {name.replace('_', '-')}" for name in from_file}
    for name in known_settings() & set(given):
        values[name] = given[name]
        origins[name] = "MODEL" if name == "model" else flag_name(name)
    config = _build(values)
    problems = config.check()
    if problems:
        raise ConfigError([_placed(problem, origins) for problem in problems])
    if misplaced := [problem for file in files if file is not None for problem in plan_problems(file, config)]:
        raise ConfigError(misplaced)
    return config


def _read(flag: str, file: Path) -> dict[str, Any]:
    try:
        return read_config_file(file, known_settings(), is_plan=flag == "--plan")
    except ConfigError as error:
        raise ConfigError([f"{flag} {problem}" for problem in error.problems]) from None


def _build(values: Mapping[str, Any]) -> ServeConfig:
    parts = {}
    for part in _PARTS:
        hints = get_type_hints(part)
        mine = {one.name for one in fields(part)} & set(values)
        parts[part] = {name: _parsed(values[name], _kind(hints[name]), name) for name in mine}
    router, worker = RouterConfig(**parts[RouterConfig]), WorkerConfig(**parts[WorkerConfig])
    return replace(ServeConfig(**parts[ServeConfig]), router=router, worker=worker)


def _parsed(value: Any, kind: type, name: str) -> Any:
    """Text from the command line as the setting's type; what is not one stays as it is, and check() refuses it."""
    if kind is tuple and isinstance(value, str | list):
        return (value,) if isinstance(value, str) else tuple(value)
    if not isinstance(value, str) or kind not in (int, float):
        return value
    text = value.strip().lower()
    try:
        if name == "kv_bytes" and text[-1:].isalpha():
            return int(bytes_of(text))
        return kind(text) if "_" not in text else value
    except (ValueError, OverflowError):
        return value


def _placed(problem: str, origins: Mapping[str, str]) -> str:
    """A problem that begins with a setting's name, begun with where its value came from instead."""
    name, rest = problem.split(" ", 1)
    return f"{origins.get(name, flag_name(name) if name in known_settings() else name)} {rest}"
