"""One placement of one model, resolved to the numbers that a walk needs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from placement.compat.distserve.configurations import Configuration
from placement.compat.distserve.profile import ModelProfile, Parallel
from placement.compat.errors import CannotServe
from placement.compat.requests import Floats, Ints, Requests


class Backend(Enum):
    """Which engine's coefficients, and who does what."""

    DISTSERVE = "distserve"  # one prefill and one decode instance
    VLLM = "vllm"  # one instance does both, prompts first


@dataclass(frozen=True, slots=True)
class Instance:
    """A prefill and a decode instance, or one that is both."""

    colocated: bool
    prefill: Floats  # [3]
    decode: Floats  # [2, 3]: of small and of large batches
    prefill_stages: int
    decode_stages: int
    prefill_capacity: int  # tokens in a prefill batch
    decode_capacity: int  # sequences in a decode batch at most
    threshold: int
    decode_cap: int  # tokens in a decode batch

    def holds(self, requests: Requests) -> bool:
        """Whether every prompt fits the prefill instance's KV memory; one that does not would wait for ever."""
        return bool(requests.prompt_tokens.max() <= self.prefill_capacity)

    def check(self, requests: Requests) -> None:
        """Raises CannotServe for a request that would stand at the head of a queue for ever."""
        self.check_decode(requests)
        self._refuse_above(
            requests,
            requests.prompt_tokens,
            self.prefill_capacity,
            "its prompt has {} tokens; the prefill instance holds {}",
        )

    def check_decode(self, requests: Requests) -> None:
        """The same of decode, where the limit is of every placement alike."""
        tokens = requests.prompt_tokens + requests.output_tokens
        self._refuse_above(
            requests, tokens, self.decode_cap, "prompt and output have {} tokens; a decode batch has at most {}"
        )

    def _refuse_above(self, requests: Requests, tokens: Ints, limit: int, what: str) -> None:
        if tokens.max() > limit:
            bad = np.flatnonzero(tokens > limit)
            first = int(bad[np.argmin(requests.row[bad])])
            raise CannotServe(f"{requests.where(first)}: " + what.format(f"{tokens[first]:,}", f"{limit:,}"))


def resolve(
    model: ModelProfile, backend: Backend, prefill: Parallel, decode: Parallel, flags: tuple[str, str] | None = None
) -> Instance:
    """Look everything up. Raises ProfileError, naming the flag, for what the profile does not have."""
    phases = zip(flags or ("prefill", "decode"), (prefill, decode), strict=True)
    for flag, phase in list(phases)[: 1 if backend is Backend.VLLM else 2]:
        model.coefficients(backend.value, phase.tp, flag)
        model.require_stages(flag, phase.pp)
        model.require_capacity(flag, phase)
    colocated = backend is Backend.VLLM
    decode = prefill if colocated else decode
    of_prefill, of_decode = (model.coefficients(backend.value, phase.tp) for phase in (prefill, decode))
    return Instance(
        colocated,
        np.array(of_prefill.prefill),
        np.array([of_decode.decode_small, of_decode.decode_large]),
        prefill.pp,
        decode.pp,
        model.require_capacity("prefill", prefill),
        model.require_capacity("decode", decode),
        model.threshold,
        model.decode_cap,
    )


def of_configuration(model: ModelProfile, backend: Backend, one: Configuration) -> Instance:
    return resolve(model, backend, one.whole(one.prefill), one.whole(one.decode))
