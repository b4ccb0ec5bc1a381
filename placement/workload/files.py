"""From a file to a workload: which format it is, rows one at a time, or all of it as columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice
from pathlib import Path

import numpy as np

from placement.workload.conversations import TokenCounter, estimate_tokens, read_conversations
from placement.workload.errors import WorkloadError
from placement.workload.fields import Fields
from placement.workload.lines import BAD_GZIP, numbered_lines, open_trace
from placement.workload.request import DEFAULT_BLOCK_TOKENS, WorkloadRequest
from placement.workload.tables import AZURE_HEADER, own_is_timed, read_azure, read_mooncake, read_own
from placement.workload.workload import Workload

CONVERSATION_FIELDS = ("conversations", "conversation", "messages")


class Format(Enum):
    """What a trace file can be."""

    AZURE = "azure"  # CSV: TIMESTAMP,ContextTokens,GeneratedTokens
    MOONCAKE = "mooncake"  # JSONL: timestamp (ms), input_length, output_length, hash_ids
    SHAREGPT = "sharegpt"  # conversations: a JSON array, or one a line
    OWN = "own"  # JSONL: arrival_s, prompt_tokens, output_tokens, ...; and what a router logs


_NEEDED = {  # by a row that is read and not left out
    Format.SHAREGPT: "; a conversation must have a turn from human or user, then one from gpt or assistant",
    Format.OWN: "; a logged one must have prompt_tokens and output_tokens above 0",
}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a format leaves open."""

    block_tokens: int = DEFAULT_BLOCK_TOKENS  # tokens that one prefix id stands for
    count_tokens: TokenCounter | None = None  # of text; None: estimated from its length
    every_turn: bool = False  # of a conversation; else its first question only
    limit: int | None = None  # so many usable rows of the file's begin, then it is not read on
    sample: int | None = None  # so many rows, each with the same chance (reservoir: memory for those alone)
    seed: int = 0  # of the sample


def detect_format(path: Path) -> Format:
    """By the file's first line. Raises WorkloadError where it is none of them."""
    with open_trace(path) as file:
        try:
            begin = file.read(1 << 16).decode("utf-8-sig", "replace").lstrip()
        except BAD_GZIP as error:
            raise WorkloadError(f"{path}:1: the compressed data is damaged: {error}") from None
        except OSError as error:
            raise WorkloadError(f"{path}: cannot be read: {error.strerror}") from None
    if not begin:
        raise WorkloadError(f"{path}: has no requests")
    if begin.startswith(AZURE_HEADER[0]):
        return Format.AZURE
    if begin.startswith("["):
        return Format.SHAREGPT
    if begin.startswith("{"):
        number, text = next(numbered_lines(path))
        row = Fields.parse(path, number, text)
        if row.present("input_length"):
            return Format.MOONCAKE
        return Format.SHAREGPT if row.present(*CONVERSATION_FIELDS) else Format.OWN
    shown = begin.splitlines()[0][:60]
    raise WorkloadError(
        f"{path}:1: begins with {shown!r}; a trace is a CSV that begins with {','.join(AZURE_HEADER)}, "
        "lines of JSON objects, or a JSON array of conversations"
    )


def iter_rows(path: Path, form: Format, options: ReadOptions) -> Iterator[WorkloadRequest | None]:
    """Rows in the file's order, a line in memory at a time; None for one that cannot be used, by rule."""
    if form is Format.AZURE:
        return read_azure(path)
    if form is Format.MOONCAKE:
        return read_mooncake(path, options.block_tokens)
    if form is Format.SHAREGPT:
        return read_conversations(path, options.count_tokens or estimate_tokens(), options.every_turn)
    return read_own(path, options.block_tokens)


def iter_requests(path: Path, options: ReadOptions = ReadOptions()) -> Iterator[WorkloadRequest]:
    """Every usable request of a file of any size, in its order (a log's times may go back)."""
    return (row for row in iter_rows(path, detect_format(path), options) if row is not None)


def read_workload(path: Path, options: ReadOptions = ReadOptions(), form: Format | None = None) -> Workload:
    """The file as columns, sorted by arrival; raises WorkloadError with file and line."""
    form = form or detect_format(path)
    timed, wall_clock = own_is_timed(path) if form is Format.OWN else (form is not Format.SHAREGPT, False)
    skipped = [0]
    rows: Iterable[WorkloadRequest] = _usable(iter_rows(path, form, options), skipped)
    if options.limit is not None:
        rows = islice(rows, options.limit)
    if options.sample is not None:
        rows = _reservoir(rows, options.sample, np.random.default_rng(options.seed))
    workload = Workload.from_requests(rows, block_tokens=options.block_tokens, timed=timed)
    if not len(workload):
        raise WorkloadError(f"{path}: has no requests{_NEEDED.get(form, '') if skipped[0] else ''}")
    if wall_clock or workload.arrival_s[0] < 0:
        workload = replace(workload, arrival_s=workload.arrival_s - workload.arrival_s[0])
    return replace(workload, num_skipped=skipped[0])


def _usable(rows: Iterator[WorkloadRequest | None], skipped: list[int]) -> Iterator[WorkloadRequest]:
    for row in rows:
        if row is None:
            skipped[0] += 1
        else:
            yield row


def _reservoir(rows: Iterable[WorkloadRequest], size: int, dice: np.random.Generator) -> list[WorkloadRequest]:
    """Algorithm R, the kept rows in their first order."""
    kept: list[tuple[int, WorkloadRequest]] = []
    for index, row in enumerate(rows):
        if len(kept) < size:
            kept.append((index, row))
        elif (place := int(dice.integers(index + 1))) < size:
            kept[place] = (index, row)
    return [row for _, row in sorted(kept, key=lambda one: one[0])]


def write_workload(workload: Workload, path: Path) -> None:
    """In our own format; raises OSError where it cannot be written."""
    with path.open("w", encoding="utf-8") as file:
        for row in workload:
            fields: dict[str, object] = {"arrival_s": row.arrival_s} if workload.timed else {}
            fields |= {"prompt_tokens": row.prompt_tokens, "output_tokens": row.output_tokens}
            optional = {"prefix_ids": list(row.prefix), "session": row.session, "tenant": row.tenant, "text": row.text}
            fields |= {name: value for name, value in optional.items() if value not in ([], None, "")}
            if row.slo_class != "default":
                fields["slo_class"] = row.slo_class
            file.write(json.dumps(fields) + "\n")
