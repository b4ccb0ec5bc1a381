"""A workload as columns: millions of requests in tens of bytes each, and rows where rows are wanted."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from placement.workload.request import DEFAULT_BLOCK_TOKENS, MAX_TOKENS, WorkloadRequest

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NO_SESSION = -1


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Block ids of all prompts, one after another."""

    ids: Ints
    offsets: Ints  # [n + 1]; request i has ids[offsets[i]:offsets[i + 1]]
    block_tokens: int = DEFAULT_BLOCK_TOKENS

    def of(self, index: int) -> Ints:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def take(self, indices: Ints) -> Prefixes:
        starts, lengths = self.offsets[indices], np.diff(self.offsets)[indices]
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Prefixes(self.ids[np.repeat(starts, lengths) + within], offsets, self.block_tokens)


@dataclass(frozen=True, slots=True)
class Labels:
    """A column of few different words."""

    codes: Ints
    names: tuple[str, ...]

    @classmethod
    def same(cls, name: str, num: int) -> Labels:
        return cls(np.zeros(num, np.int64), (name,))


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival. Immutable: every change is a new one (see transform.py)."""

    arrival_s: Floats  # [n], not decreasing, from 0 on; zeros when untimed
    prompt_tokens: Ints  # [n], at least 1
    output_tokens: Ints  # [n], at least 1
    slo_class: Labels
    tenant: Labels
    prefixes: Prefixes | None = None
    session: Ints | None = None  # [n], NO_SESSION for none
    texts: tuple[str | None, ...] | None = None
    timed: bool = True  # False: lengths only; arrivals have to be made (with_arrivals)
    num_skipped: int = 0  # rows of the source that could not be used, by rule (rejected requests of a router's log)

    @classmethod
    def of(
        cls, prompt_tokens: Ints, output_tokens: Ints, arrival_s: Floats | None = None, prefixes: Prefixes | None = None
    ) -> Workload:
        """From its numbers; without arrivals it is untimed."""
        num = len(prompt_tokens)
        times = np.zeros(num) if arrival_s is None else arrival_s
        classes, tenants = Labels.same("default", num), Labels.same("", num)
        return cls(times, prompt_tokens, output_tokens, classes, tenants, prefixes, timed=arrival_s is not None)

    @classmethod
    def from_requests(
        cls,
        requests: Iterable[WorkloadRequest],
        *,
        block_tokens: int = DEFAULT_BLOCK_TOKENS,
        timed: bool = True,
        num_skipped: int = 0,
    ) -> Workload:
        """Rows, in any order, as columns sorted by arrival (equal times keep their order)."""
        columns = _Columns()
        for row in requests:
            columns.add(row)
        return columns.build(block_tokens, timed, num_skipped).sorted_by_arrival()

    def sorted_by_arrival(self) -> Workload:
        if (np.diff(self.arrival_s) >= 0).all():
            return self
        return self.take(np.argsort(self.arrival_s, kind="stable"))

    def __len__(self) -> int:
        return len(self.arrival_s)

    def __getitem__(self, index: int) -> WorkloadRequest:
        session = None if self.session is None or self.session[index] == NO_SESSION else int(self.session[index])
        return WorkloadRequest(
            float(self.arrival_s[index]),
            int(self.prompt_tokens[index]),
            int(self.output_tokens[index]),
            () if self.prefixes is None else tuple(self.prefixes.of(index).tolist()),
            session,
            self.slo_class.names[self.slo_class.codes[index]],
            self.tenant.names[self.tenant.codes[index]],
            None if self.texts is None else self.texts[index],
        )

    def __iter__(self) -> Iterator[WorkloadRequest]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: Ints) -> Workload:
        """Those rows, in that order; a row may come more than once. Times are taken along."""
        return replace(
            self,
            arrival_s=self.arrival_s[indices],
            prompt_tokens=self.prompt_tokens[indices],
            output_tokens=self.output_tokens[indices],
            slo_class=replace(self.slo_class, codes=self.slo_class.codes[indices]),
            tenant=replace(self.tenant, codes=self.tenant.codes[indices]),
            prefixes=None if self.prefixes is None else self.prefixes.take(indices),
            session=None if self.session is None else self.session[indices],
            texts=None if self.texts is None else tuple(self.texts[index] for index in indices),
        )

    @property
    def duration_s(self) -> float:
        """First arrival to last."""
        return float(self.arrival_s[-1] - self.arrival_s[0]) if len(self) else 0.0

    @property
    def rate(self) -> float:
        """Requests per second; 0 where fewer than two moments are known."""
        return (len(self) - 1) / self.duration_s if self.duration_s > 0 else 0.0

    def check(self) -> None:
        """Every invariant that the fields state; for tests and after making one by hand."""
        num = len(self)
        columns = (self.prompt_tokens, self.output_tokens, self.slo_class.codes, self.tenant.codes)
        assert all(len(column) == num for column in columns)
        assert (np.diff(self.arrival_s) >= 0).all() and (num == 0 or self.arrival_s[0] >= 0)
        assert all(((one >= 1) & (one <= MAX_TOKENS)).all() for one in (self.prompt_tokens, self.output_tokens))
        if self.prefixes is not None:
            blocks = np.diff(self.prefixes.offsets)
            assert len(blocks) == num and (blocks * self.prefixes.block_tokens < self.prompt_tokens
                                           + self.prefixes.block_tokens).all()  # fmt: skip
        assert self.session is None or len(self.session) == num
        assert self.texts is None or len(self.texts) == num


class _Columns:
    """Grows by rows, in a few bytes each: what is read from a huge file goes through here."""

    def __init__(self) -> None:
        self._arrival_s = array("d")
        self._prompt, self._output, self._session = array("q"), array("q"), array("q")
        self._ids, self._offsets = array("q"), array("q", [0])
        self._classes: dict[str, int] = {}
        self._tenants: dict[str, int] = {}
        self._class_codes, self._tenant_codes = array("q"), array("q")
        self._texts: list[str | None] = []
        self._has_session = self._has_text = False

    def add(self, row: WorkloadRequest) -> None:
        self._arrival_s.append(row.arrival_s)
        self._prompt.append(row.prompt_tokens)
        self._output.append(row.output_tokens)
        self._ids.extend(row.prefix)
        self._offsets.append(len(self._ids))
        self._session.append(NO_SESSION if row.session is None else row.session)
        self._has_session |= row.session is not None
        self._class_codes.append(self._classes.setdefault(row.slo_class, len(self._classes)))
        self._tenant_codes.append(self._tenants.setdefault(row.tenant, len(self._tenants)))
        self._texts.append(row.text)
        self._has_text |= row.text is not None

    def build(self, block_tokens: int, timed: bool, num_skipped: int) -> Workload:
        return Workload(
            np.array(self._arrival_s, np.float64),
            np.array(self._prompt, np.int64),
            np.array(self._output, np.int64),
            Labels(np.array(self._class_codes, np.int64), tuple(self._classes)),
            Labels(np.array(self._tenant_codes, np.int64), tuple(self._tenants)),
            Prefixes(np.array(self._ids, np.int64), np.array(self._offsets, np.int64), block_tokens)
            if self._ids
            else None,
            np.array(self._session, np.int64) if self._has_session else None,
            tuple(self._texts) if self._has_text else None,
            timed,
            num_skipped,
        )
