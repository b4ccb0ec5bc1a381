"""Readers of traces: what they give, and the line and value that they name where a file is wrong."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pdserve.exit import ExitCode
from placement.workload import (
    Format,
    ReadOptions,
    Workload,
    WorkloadError,
    WorkloadRequest,
    iter_requests,
    read_workload,
    write_workload,
)
from placement.workload.files import detect_format
from placement.workload.sharing import hit_ratio

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TURNS = [
    {"from": "system", "value": "be kind"}, {"from": "human", "value": "a" * 40}, {"from": "gpt", "value": "b" * 80},
    {"from": "human", "value": "c" * 4}, {"from": "gpt", "value": "d" * 9},
]  # fmt: skip


def wrote(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "trace"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def columns(workload: Workload) -> list[tuple[float, int, int]]:
    workload.check()
    return [(round(row.arrival_s, 7), row.prompt_tokens, row.output_tokens) for row in workload]


@pytest.mark.parametrize("zone", ["", "+00:00"])
def test_azure_times_count_from_the_first_arrival(tmp_path: Path, zone: str) -> None:
    """Seven digits of a second count, also over midnight; rows are put in order; CRLF and a BOM pass."""
    rows = [f"2023-11-16 23:59:59.9799600{zone},4808,10", f"2023-11-17 00:00:01.0000001{zone},1,1",
            f"2023-11-17 00:00:00{zone},3180,8", ""]  # fmt: skip
    path = wrote(tmp_path, "\ufeff" + (AZURE + "\n".join(rows)).replace("\n", "\r\n"))
    assert columns(read_workload(path)) == [(0.0, 4808, 10), (0.02004, 3180, 8), (1.0200401, 1, 1)]


def test_mooncake_keeps_its_prefixes(tmp_path: Path) -> None:
    """Milliseconds become seconds; equal ids stay equal; a part of a file keeps its own ids."""
    rows = [
        {"timestamp": 0, "input_length": 1025, "output_length": 5, "hash_ids": [7, 8, 9]},
        {"timestamp": 1500, "input_length": 600, "output_length": 2, "hash_ids": [7, 11]},
    ]
    workload = read_workload(wrote(tmp_path, "\n".join(map(json.dumps, rows))))
    assert columns(workload) == [(0.0, 1025, 5), (1.5, 600, 2)]
    assert [row.prefix for row in workload] == [(7, 8, 9), (7, 11)]
    assert workload.prefixes is not None and hit_ratio(workload.prefixes) == 1 / 5
    assert workload.take(np.array([1]))[0].prefix == (7, 11)


@pytest.mark.parametrize("lines", [False, True])
def test_conversations_in_an_array_or_in_lines(tmp_path: Path, lines: bool) -> None:
    """A question and its answer; unanswered ones are left out and counted; by turns, prompts hold what came before."""
    unanswered = {"conversations": [{"from": "human", "value": "hello?"}]}
    everyone = [{"id": "x", "conversations": TURNS}, unanswered, {"messages": [
        {"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]}]  # fmt: skip
    path = wrote(tmp_path, "\n".join(map(json.dumps, everyone)) if lines else json.dumps(everyone, indent=1))
    workload = read_workload(path)
    assert [(row.prompt_tokens, row.output_tokens, row.session) for row in workload] == [(10, 20, 0), (2, 2, 2)]
    assert (workload.timed, workload.num_skipped, workload[1].text) == (False, 1, "one two")
    words = read_workload(path, ReadOptions(count_tokens=lambda text: len(text.split()), every_turn=True))
    assert [(row.prompt_tokens, row.session) for row in words] == [(1, 0), (1, 0), (2, 2)]
    assert words[1].text == "a" * 40 + "b" * 80 + "c" * 4


def test_a_large_array_is_read_in_pieces(tmp_path: Path) -> None:
    """Conversations that cross the borders of what is read at once come out whole, and lines are counted through."""
    many = [{"conversations": [{"from": "human", "value": "x" * (97 * n % 9000 + 1)}, {"from": "gpt", "value": "y"}]}
            for n in range(200)]  # fmt: skip
    path = wrote(tmp_path, "[\n" + ",\n".join(map(json.dumps, many)) + "\n]")
    assert [len(row.text or "") for row in iter_requests(path)] == [97 * n % 9000 + 1 for n in range(200)]
    path.write_text(path.read_text().replace('"y"}]}\n]', '"y"}]} oops\n]'))
    with pytest.raises(WorkloadError, match=rf"{path}:201: 'o' stands where"):
        list(iter_requests(path))


def test_our_own_lines_come_back(tmp_path: Path) -> None:
    """What is written is read again, field by field."""
    rows = [
        WorkloadRequest(0.25, 40, 3, (5, 6), 1, "fast", "acme", "hello"),
        WorkloadRequest(0.5, 7, 1),
        WorkloadRequest(0.5, 8, 2, session=4),
    ]
    path = tmp_path / "own.jsonl"
    write_workload(Workload.from_requests(rows, block_tokens=32), path)
    assert list(read_workload(path, ReadOptions(block_tokens=32))) == rows
    lengths = wrote(tmp_path, '{"prompt_tokens": 4, "output_tokens": 2}\n')
    assert not read_workload(lengths).timed


def test_a_routers_log_is_a_workload(tmp_path: Path) -> None:
    """Wall-clock times, in the order of the ends; a request that was refused has no output length and is counted."""
    log = [
        {"received_unix_s": 1700000003.5, "outcome": "finished", "prompt_tokens": 9, "completion_tokens": 4,
         "tenant": "a", "slo": {"class": "fast", "ttft_s": 1.0}, "timing": {"ttft_s": 0.1}},
        {"received_unix_s": 1700000001.0, "outcome": "rejected", "prompt_tokens": 9, "completion_tokens": 0},
        {"received_unix_s": 1700000002.0, "outcome": "cancelled", "prompt_tokens": 5, "completion_tokens": 2},
    ]  # fmt: skip
    workload = read_workload(wrote(tmp_path, "\n".join(map(json.dumps, log))))
    assert columns(workload) == [(0.0, 5, 2), (1.5, 9, 4)]
    for row in log:  # as router/request_log.py writes it
        at_s = row.pop("received_unix_s")
        row["time"] = datetime.fromtimestamp(float(str(at_s)), UTC).isoformat(timespec="microseconds")
    assert columns(read_workload(wrote(tmp_path, "\n".join(map(json.dumps, log))))) == [(0.0, 5, 2), (1.5, 9, 4)]
    assert (workload[1].slo_class, workload[1].tenant, workload.num_skipped) == ("fast", "a", 1)


def test_compressed_files_are_known_by_their_bytes(tmp_path: Path) -> None:
    """Packed like plain; a cut one says so with the line it got to."""
    text = AZURE + "2023-11-16 18:17:03,5,6\n" * 5000
    packed = gzip.compress(text.encode())
    assert len(read_workload(wrote(tmp_path, packed))) == 5000
    with pytest.raises(WorkloadError, match=r"trace:\d+: the compressed data is damaged"):
        read_workload(wrote(tmp_path, packed[:-60]))


def test_a_part_of_a_file(tmp_path: Path) -> None:
    """The first rows without reading on; a fair sample, the same for the same seed."""
    path = wrote(tmp_path, "".join(f'{{"arrival_s": {n}, "prompt_tokens": {n + 1}, "output_tokens": 1}}\n'
                                   for n in range(1000)) + "broken")  # fmt: skip
    assert read_workload(path, ReadOptions(limit=3)).prompt_tokens.tolist() == [1, 2, 3]
    path.write_text(path.read_text().removesuffix("broken"))
    drawn = [read_workload(path, ReadOptions(sample=100, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0].arrival_s.tolist() == drawn[1].arrival_s.tolist() != drawn[2].arrival_s.tolist()
    assert 420 < drawn[0].arrival_s.mean() < 580


OWN = '{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 2%s}'
BAD = [
    (AZURE + "2023-11-16 18:17:03,12x,6", r":2: ContextTokens is '12x'; it must be a whole number from 1"),
    (AZURE + "2023-11-16 18:17:03,12,0", r":2: GeneratedTokens is '0'"),
    (AZURE + "2023-11-16 18:17:03,12", r":2: has 2 fields; it must have 3"),
    (AZURE + "\n\nyesterday,1,2", r":4: TIMESTAMP is 'yesterday'; it must be like"),
    (AZURE + "2023-11-16 18:17:03.5x,1,2", r":2: TIMESTAMP is"),
    ("TIMESTAMP,Context,Generated\n", r":1: the header is 'TIMESTAMP,Context,Generated'; it must be"),
    (AZURE, r"has no requests$"),
    ("", r"has no requests"),
    ("hello\n", r":1: begins with 'hello'; a trace is"),
    ('{"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [1, 2, 3]}', r":1: hash_ids has 3 ids; a "
     r"prompt of 513 tokens has at most 2 blocks of 512"),
    ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": "ab"}', r"hash_ids is 'ab'; it must be a"),
    ('{"timestamp": -1, "input_length": 5, "output_length": 1}', r"timestamp is -1; it must be a number, at least 0"),
    ('{"input_length": 5, "output_length": 1}', r"'timestamp' is missing; the line has 'input_length'"),
    (OWN % "" + "\n" + OWN % ', "session": "x"', r":2: session is 'x'; it must be a whole number"),
    ('{"time": "noon", "prompt_tokens": 5, "output_tokens": 2}', r":1: time is 'noon'; it must be like"),
    (OWN % ', "tenant": 3', r":1: tenant is 3; it must be text"),
    (OWN % ', "prefix_ids": [1.5]', r"prefix_ids is \[1.5\]"),
    (OWN.replace("1,", "NaN,") % "", r"arrival_s is nan; it must be a number"),
    (OWN.replace('5,', 'true,') % "", r"prompt_tokens is True; it must be a whole number"),
    ('{"prompt_tokens": 5}', r"'output_tokens' or 'completion_tokens' is missing; the line has 'prompt_tokens'"),
    (OWN % "" + "\n{oops", r":2: not JSON: Expecting property name .* at column 2: '\{oops'"),
    (OWN % "" + "\n[1]", r":2: is \[1\]; a line must be a JSON object"),
    ((OWN % "").encode() + b"\n\xff\xfe", r":2: byte 0 of the line is not UTF-8"),
    ("[" + "[" * 20000, r":1: not JSON"),
    ('[{"conversations": [}]', r":1: not JSON"),
    ("[\n3]", r":2: is 3; a conversation must be a JSON object"),
    ('[\n{"title": 1}]', r":2: 'conversations' or 'conversation' or 'messages' is missing; the line has 'title'"),
    ('[{"conversations": 5}]', r":1: conversations is 5; it must be a list of turns"),
    ('[{"conversations": ["hello"]}]', r":1: conversations has 'hello'; a turn must be a JSON object"),
    ('{"prompt_tokens": 5, "output_tokens": 0, "outcome": "failed"}', r"no requests; a logged one must have prompt_to"),
    ('[{"conversations": [{"value": "x"}]}]', r"'from' or 'role' is missing"),
    ('[{"conversations": []}]', r"has no requests; a conversation must have a turn from human"),
    ('[{"conversations": []}', r":1: 'the end' stands where"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_is_named(tmp_path: Path, text: str | bytes, said: str) -> None:
    """File, line, field, value and what is allowed; exit code 5; on one line."""
    with pytest.raises(WorkloadError, match=said) as caught:
        read_workload(wrote(tmp_path, text))
    assert caught.value.exit_code is ExitCode.WORKLOAD
    assert str(tmp_path) in caught.value.message and "\n" not in caught.value.message


def test_a_file_that_is_not_there_or_is_a_directory(tmp_path: Path) -> None:
    """Named, with the system's reason."""
    with pytest.raises(WorkloadError, match=r"nothing: cannot be read: No such file"):
        read_workload(tmp_path / "nothing")
    with pytest.raises(WorkloadError, match=r"cannot be read: Is a directory"):
        read_workload(tmp_path)


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on a line holds before the line is in memory."""
    monkeypatch.setattr("placement.workload.lines.MAX_LINE_BYTES", 1000)
    with pytest.raises(WorkloadError, match=r":1: the line is longer than 1,000 bytes"):
        read_workload(wrote(tmp_path, '{"x": "' + "y" * 5000), form=Format.OWN)


@pytest.mark.skipif(not DATA.is_dir(), reason="the published traces are not here")
def test_the_published_traces_are_read_whole() -> None:
    """Rows, rates, means and the hit ratio that their publishers state."""
    code = read_workload(DATA / "AzureLLMInferenceTrace_code.csv")
    conv = read_workload(DATA / "AzureLLMInferenceTrace_conv.csv")
    moon = read_workload(DATA / "mooncake_synthetic_trace.jsonl")
    assert [len(code), len(conv), len(moon)] == [8819, 19366, 3993]
    assert [round(one.rate, 2) for one in (code, conv)] == [2.57, 5.53]
    assert [round(float(one.prompt_tokens.mean())) for one in (code, conv, moon)] == [2048, 1155, 15325]
    assert moon.prefixes is not None and round(hit_ratio(moon.prefixes), 2) == 0.64
    assert detect_format(DATA / "mooncake_synthetic_trace.jsonl") is Format.MOONCAKE
