"""What `--workload` takes, the same for bench, simulate and plan.

    SOURCE[,KEY=VALUE...]

SOURCE is a trace file, a preset (azure-code, azure-conv, mooncake), or nothing, where input= and output= give lengths:

    --workload trace.csv,rate=4,head=1000
    --workload azure-conv,rate=8,arrivals=poisson,max-total=4096
    --workload input=2000,output=100,rate=2
    --workload input=lognormal:2000:0.8,output=50..200,correlation=0.3,arrivals=gamma,cv=3

Wrong words are wrong arguments (exit code 2): a key, a value, a source that is neither preset nor like a file's name.
Right words of a workload that cannot be used are 5: a file that is missing or damaged, nothing left within the limits,
no rate.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from pdserve.settings import ConfigError
from placement.workload.conversations import CHARS_PER_TOKEN
from placement.workload.files import Format
from placement.workload.lengths import Fixed, Lengths, Lognormal, Uniform
from placement.workload.presets import PRESETS
from placement.workload.request import DEFAULT_BLOCK_TOKENS, MAX_TOKENS

ARRIVALS = ("trace", "poisson", "gamma", "constant")
FLAG = "--workload"


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """One `--workload`, checked. Every field but source is a key, with - for _."""

    source: str = ""  # file or preset; empty: input and output
    input: Lengths | None = None
    output: Lengths | None = None
    correlation: float = 0.0  # of input and output, -1 to 1
    rate: float | None = None  # mean requests per second; None: the source's own
    rates: tuple[tuple[float, float], ...] = ()  # RATE@SECONDS+RATE@SECONDS..., over and over
    arrivals: str | None = None  # None: as recorded, where the source has times; else poisson
    cv: float | None = None  # of the gaps, for gamma and rates
    n: int | None = None  # requests
    duration: float | None = None  # seconds of arrivals
    seed: int | None = None
    head: int | None = None  # of a file: its first so many
    sample: int | None = None  # of a file: so many at random
    start: float = 0.0  # of a file: from this second
    end: float = math.inf  # of a file: to this second
    resample: bool = False  # of a file: requests are drawn with replacement (bootstrap)
    max_input: int | None = None  # longer requests are left out
    max_output: int | None = None
    max_total: int | None = None
    clip: bool = False  # longer requests are cut to max-input and max-output instead
    format: Format | None = None  # None: by what the file looks like
    turns: str = "first"  # of a conversation: first or all
    chars_per_token: float = CHARS_PER_TOKEN  # estimate where no tokenizer is at hand
    block: int = DEFAULT_BLOCK_TOKENS  # tokens that one prefix id of a file stands for
    prefix: int = 0  # tokens of input that all share, a system prompt; of a shorter prompt, all of it

    @property
    def path(self) -> Path | None:
        """The trace file, if it is one."""
        return Path(self.source) if self.source and self.source not in PRESETS else None


def parse_workload_spec(text: str, flag: str = FLAG, *, is_file: bool = False) -> WorkloadSpec:
    """Raises ConfigError naming the flag, the key, its value and what is allowed.

    `is_file`: whatever the text begins with is a file's name.
    """
    source, pairs = _split(text, flag, is_file)
    known = {one.name.replace("_", "-") for one in fields(WorkloadSpec)} - {"source"}
    values: dict[str, Any] = {"source": source}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or key not in known:
            close = get_close_matches(key, known, 1)
            hint = f" (did you mean {close[0]}?)" if close else f"; keys are {', '.join(sorted(known))}"
            raise _wrong(flag, f"has {pair!r}, which is not KEY=VALUE of a known key{hint}")
        if key.replace("-", "_") in values:
            raise _wrong(flag, f"gives {key} twice")
        values[key.replace("-", "_")] = _value(key, value.strip(), flag)
    spec = WorkloadSpec(**values)
    _check(spec, flag)
    return spec


def _split(text: str, flag: str, is_file: bool) -> tuple[str, list[str]]:
    """(source, the pairs behind it). A file's name may hold commas and equal signs, if there is such a file."""
    words = text.split(",")
    for num in range(len(words), 0, -1):
        if os.path.isfile(",".join(words[:num])):  # Path.is_file raises for names that are too long
            return ",".join(words[:num]), words[num:]
    first = words[0].strip()
    if "=" in first and not is_file:
        return "", words
    if is_file or first in PRESETS or first.endswith((".csv", ".json", ".jsonl", ".gz")) or "/" in first:
        return first, words[1:]  # a file that is not there is told when it is read
    what = "a directory" if os.path.isdir(first) else "no file"
    raise _wrong(
        flag, f"is {_shown(text)}, {what}; it must begin with a trace file, one of {', '.join(PRESETS)}, or input=..."
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:97] + "...")


def _wrong(flag: str, what: str) -> ConfigError:
    return ConfigError([f"{flag} {what}"])


def _value(key: str, text: str, flag: str) -> Any:
    parse, allowed = _PARSERS.get(key, (_whole, f"a whole number from 1 to {MAX_TOKENS:,}"))
    try:
        return parse(text)
    except (ValueError, KeyError, OverflowError):
        raise _wrong(flag, f"{key} is {text!r}; it must be {allowed}") from None


def _whole(text: str, low: int = 1) -> int:
    value = int(text) if text.isascii() and text.isdecimal() else -1
    return value if low <= value <= MAX_TOKENS else _refuse()


def _number(text: str, low: float = -math.inf, high: float = math.inf) -> float:
    value = float(text)
    return value if low <= value <= high and math.isfinite(value) else _refuse()


def _refuse() -> Any:
    raise ValueError


def _above(text: str) -> float:
    return _number(text, low=1e-9)


def _lengths(text: str) -> Lengths:
    if text.startswith("lognormal:"):
        _, mean, cv = text.split(":")
        return Lognormal(_number(mean, 1, MAX_TOKENS), _number(cv, 0, 100))
    low, dots, high = text.partition("..")
    if not dots:
        return Fixed(_whole(low))
    return Uniform(_whole(low), _whole(high)) if _whole(low) <= _whole(high) else _refuse()


def _pieces(text: str) -> tuple[tuple[float, float], ...]:
    pieces = tuple((_number(rate, 0), _above(seconds)) for rate, seconds in (one.split("@") for one in text.split("+")))
    return pieces if any(rate > 0 for rate, _ in pieces) else _refuse()


def _choice(*names: str) -> Callable[[str], str]:
    return lambda text: text if text in names else _refuse()


def _yes(text: str) -> bool:
    return {"yes": True, "no": False}[text]


_LENGTHS = f"TOKENS, LOW..HIGH or lognormal:MEAN:CV, tokens from 1 to {MAX_TOKENS:,}"
_PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "input": (_lengths, _LENGTHS),
    "output": (_lengths, _LENGTHS),
    "correlation": (lambda text: _number(text, -1, 1), "a number from -1 to 1"),
    "rate": (_above, "a number of requests per second above 0"),
    "rates": (_pieces, "RATE@SECONDS+RATE@SECONDS..., some rate above 0"),
    "arrivals": (_choice(*ARRIVALS), f"one of {', '.join(ARRIVALS)}"),
    "cv": (lambda text: _number(text, 0, 100), "a number from 0 to 100"),
    "duration": (_above, "a number of seconds above 0"),
    "seed": (lambda text: _whole(text, 0), "a whole number, at least 0"),
    "start": (lambda text: _number(text, 0), "a number of seconds, at least 0"),
    "end": (_above, "a number of seconds above 0"),
    "resample": (_yes, "yes or no"),
    "clip": (_yes, "yes or no"),
    "format": (Format, f"one of {', '.join(one.value for one in Format)}"),
    "turns": (_choice("first", "all"), "first or all"),
    "chars-per-token": (_above, "a number above 0"),
}


def _check(spec: WorkloadSpec, flag: str) -> None:
    """Keys that do not go together."""
    made = not spec.source
    if made and (spec.input is None or spec.output is None):
        raise _wrong(flag, f"lacks {'input' if spec.input is None else 'output'}=; without a file it needs both")
    if not made and (spec.input is not None or spec.output is not None):
        raise _wrong(flag, f"names {spec.source!r} and input= or output=; lengths come from one of them")
    if spec.rates and spec.rate is not None:
        raise _wrong(flag, "has rate= and rates=; only one of them can be")
    if spec.rates and spec.arrivals is not None:
        raise _wrong(flag, "has arrivals= and rates=; rates= is Poisson, or with cv= more or less even")
    if spec.arrivals == "gamma" and spec.cv is None:
        raise _wrong(flag, "has arrivals=gamma and no cv=")
    if spec.cv is not None and spec.arrivals != "gamma" and not spec.rates:
        raise _wrong(flag, "has cv=, which goes with arrivals=gamma or rates= alone")
    if spec.arrivals == "trace" and made:
        raise _wrong(flag, "has arrivals=trace, but no trace")
    if spec.clip and (spec.max_input is None or spec.max_output is None):
        raise _wrong(flag, "has clip=yes, which needs max-input= and max-output=")
    if spec.path is None:
        given = [name for name in ("head", "sample", "format") if getattr(spec, name) is not None]
        given += [name for name in ("start", "resample") if getattr(spec, name)] + ["end"] * (spec.end < math.inf)
        if given:
            raise _wrong(flag, f"has {given[0]}=, which is for trace files alone")
    if spec.prefix and not made:
        raise _wrong(flag, "has prefix=, which goes with input= and output= alone")
    if spec.prefix and spec.input is not None and spec.prefix > (longest := _longest(spec.input, spec.max_input)):
        raise _wrong(flag, f"prefix is {spec.prefix} and no prompt has more than {longest} tokens; input includes it")
    if spec.start >= spec.end:
        raise _wrong(flag, f"start is {spec.start:g} and end is {spec.end:g}; start must be less")


def _longest(prompt: Lengths, limit: int | None) -> int:
    """Tokens that no prompt has more of; of a lognormal one, that none in a billion has."""
    drawn = int(prompt.quantile(np.ones(1))[0])
    return drawn if limit is None else min(drawn, limit)
