"""Configuration from YAML: a flat mapping of settings, read by a loader that makes plain data only; or from a plan."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from deploy.plan_settings import check_plan, plan_settings
from pdserve.config import SloClass, TenantKey
from pdserve.settings import ConfigError

MAX_BYTES = 1_000_000
MAX_NESTING = 32  # of [ and {: the scanner's time grows with the square of it


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader without aliases (a few lines of them expand to gigabytes) and without duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", mark)
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level >= MAX_NESTING:
            raise yaml.scanner.ScannerError(None, None, "is nested too deeply", self.get_mark())
        super().fetch_flow_collection_start(token)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        made = super().construct_mapping(node, deep)
        if len(made) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key appears twice", node.start_mark)
        return made


def read_config_file(path: Path, known: set[str], *, is_plan: bool = False) -> dict[str, Any]:
    """The settings of a file, keys with underscores; raises ConfigError, each problem with the file's name.

    Keys may be written with dashes, as on the command line. Values are not checked here: the config's own check does.
    `is_plan`: it must be a plan, or JSON.
    """
    text = _text(path)
    if is_plan:
        check_plan(path, text, known)
    data = _load(path, text)
    if not isinstance(data, dict):
        raise ConfigError(
            [f"{path}: is {'empty' if data is None else 'not a mapping'}; it must map settings to values"]
        )
    values, problems = {}, []
    for key, value in data.items():
        name = str(key).replace("-", "_")
        if not isinstance(key, str) or name not in known:
            problems.append(f"{path}: {key} is not a setting{suggestion(name, known)}")
        elif name in values:
            problems.append(f"{path}: {key} appears twice")
        else:
            values[name] = value
    if problems:
        raise ConfigError(problems)
    return _structured(path, values)


def suggestion(name: str, known: set[str]) -> str:
    """'; did you mean X?' for what looks like a typing error."""
    close = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), known, 1)
    return f"; did you mean {close[0].replace('_', '-')}?" if close else ""


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError([f"{path}: has {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read"])
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8 text"]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from None
    if text.startswith("\ufeff"):
        raise ConfigError([f"{path}: begins with a byte order mark; save it as plain UTF-8"])
    return text


def _load(path: Path, text: str) -> Any:
    if (settings := plan_settings(path, text)) is not None:
        return settings
    try:
        return _PlainLoader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError([f"{path}{where}: {error.problem or error.context}"]) from None
    except RecursionError:
        raise ConfigError([f"{path}: is nested too deeply"]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError([f"{path}: is not YAML: {' '.join(str(error).split())[:200]}"]) from None


def _structured(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The settings that are no plain values: slo-classes, tenants and tenant-keys."""
    if "slo_classes" in values:
        values["slo_classes"] = _slo_classes(path, values["slo_classes"])
    if "tenants" in values:
        tenants = values["tenants"]
        if not isinstance(tenants, list) or not all(isinstance(one, str) and one for one in tenants):
            raise ConfigError([f"{path}: tenants must be a list of names"])
        values["tenants"] = tuple(tenants)
    if "tenant_keys" in values:
        values["tenant_keys"] = _tenant_keys(path, values["tenant_keys"])
    return values


def _tenant_keys(path: Path, value: Any) -> tuple[TenantKey, ...]:
    """Tenant -> its key, or a list of them."""
    made = []
    for tenant, given in value.items() if isinstance(value, dict) else [("", None)]:
        keys: list[Any] = given if isinstance(given, list) else [given]
        if not (isinstance(tenant, str) and tenant and keys and all(isinstance(key, str) for key in keys)):
            raise ConfigError([f"{path}: tenant-keys must map tenants to a key or a list of keys"])
        made += [TenantKey(tenant, key) for key in keys]
    return tuple(made)


def _slo_classes(path: Path, value: Any) -> tuple[SloClass, ...]:
    made = []
    for name, thresholds in value.items() if isinstance(value, dict) else [("", None)]:
        if not isinstance(name, str) or not isinstance(thresholds, dict):
            raise ConfigError([f"{path}: slo-classes must map names to ttft-s and tpot-s"])
        plain = {str(key).replace("-", "_"): threshold for key, threshold in thresholds.items()}
        unknown = set(plain) - {"ttft_s", "tpot_s"}
        if unknown:
            raise ConfigError([f"{path}: slo-classes.{name}.{min(unknown)} is not a setting (ttft-s and tpot-s are)"])
        made.append(SloClass(name, **plain))
    return tuple(made)
