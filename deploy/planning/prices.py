"""What a GPU costs and draws: the catalogue's list prices, over them the profile's, over those the flags'."""

from __future__ import annotations

import argparse
from dataclasses import replace

from deploy.arguments import above_zero, flag
from pdserve.settings import ConfigError
from placement.hardware.catalogue import GpuType
from placement.latency.fitted_profile import Subject
from placement.search.space import Space

PRICES = ("cost_per_hour", "power_w")
_WHAT = {"cost_per_hour": "price", "power_w": "power"}
_ASKS = {"cost_per_hour": ("cost", "max_cost"), "power_w": ("power", "max_power")}


def priced(types: tuple[GpuType, ...], args: argparse.Namespace, subject: Subject | None) -> tuple[GpuType, ...]:
    """The same types with what is known of them. Errors: ConfigError."""
    return tuple(_one(gpu, args, subject) for gpu in types)


def check_prices(args: argparse.Namespace, space: Space) -> None:
    """Errors: ConfigError where the question is about a price that nobody gave, or a flag names no type in it."""
    types = {gpu.name: gpu for gpu in (*space.prefill_gpus, *space.decode_gpus)}
    for name in PRICES:
        price, budget = _ASKS[name]
        asked = f"--price {price}" if args.price == price else flag(budget) if getattr(args, budget) else None
        for gpu in types.values() if asked is not None else ():
            if getattr(gpu, name) == 0.0:
                raise ConfigError(
                    [f"{asked} needs the {_WHAT[name]} of {gpu.name}, which is not known: give {flag(name)}, "
                     f"or a --profile that was measured with it"]
                )  # fmt: skip
        for named in _given(name, getattr(args, name)):
            if named and named not in types:
                raise ConfigError([f"{flag(name)} names {named}; the types are {', '.join(types)}"])


def _one(gpu: GpuType, args: argparse.Namespace, subject: Subject | None) -> GpuType:
    found = {name: getattr(gpu, name) for name in PRICES}
    for name in PRICES:
        measured = None if subject is None else getattr(subject, name)
        given = _given(name, getattr(args, name))
        found[name] = given.get(gpu.name, given.get("", measured or found[name]))
    return replace(gpu, **found)


def _given(name: str, text: str | None) -> dict[str, float]:
    """Of `X` (every type, key "") or `TYPE=X,...`."""
    found: dict[str, float] = {}
    for item in [] if text is None else text.split(","):
        before, _, number = item.rpartition("=")
        try:
            found[before.strip().lower()] = above_zero(number.strip())
        except argparse.ArgumentTypeError as error:
            raise ConfigError([f"{flag(name)} is {text!r}: {error}; give one for all, or TYPE=NUMBER,..."]) from None
    return found
