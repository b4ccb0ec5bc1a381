"""`pdserve simulate --compat` and `pdserve plan --compat`: files in and out, exit codes, and one line per mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROFILE = {
    "schema": "pd-latency-profile/1",
    "formulas": {"threshold_B": 95, "decode_batch_ctx_cap_tokens": 50000},
    "models": {
        "tiny": {
            "layers": 8,
            "kv_capacity_tokens": [[1, 1, 4096], [1, 2, 12288], [2, 1, 12288]],
            "engines": {
                engine: [
                    {"tp": tp, "prefill": [10 / tp, 0.1 / tp, 0], "decode_small": [20 / tp, 0, 0],
                     "decode_large": [20 / tp, 0, 0]}
                    for tp in (1, 2)
                ]
                for engine in ("distserve", "vllm")
            },
        }
    },
}  # fmt: skip
ROWS = [(2.0, 100, 3), (0.0, 50, 1), (2.0, 10, 2)]

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, run_with: Callable[..., tuple[int, str]]) -> Run:
    """Run a command with good flags, some of them replaced (None: left out); its exit code and what it printed."""
    (tmp_path / "p.json").write_text(json.dumps(PROFILE))
    lines = [json.dumps({"arrival_s": at, "prompt_tokens": p, "output_tokens": o, "tenant": "x"}) for at, p, o in ROWS]
    (tmp_path / "r.jsonl").write_text("\n".join(lines) + "\n\n")
    shared = {"compat": "distserve", "profile": tmp_path / "p.json", "model": "tiny", "requests": tmp_path / "r.jsonl"}
    special: dict[str, dict[str, Any]] = {
        "simulate": {"prefill": "tp=2,pp=1", "decode": "tp=1", "output": tmp_path / "out"},
        "plan": {"max-rate-per-gpu": 4, "resolution": 1, "nodes": 1, "gpus-per-node": 3, "affinity": "low",
                 "slo-ttft": 1, "slo-tpot": 1, "output": tmp_path / "out"},
    }  # fmt: skip

    return lambda command, **changes: run_with(command, shared | special[command], changes)


def test_rows_come_out_in_the_order_of_the_file(run: Run, tmp_path: Path) -> None:
    """The one in the middle arrived first and alone; the other two share a prefill."""
    code, printed = run("simulate")
    rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert code == 0 and "3 requests" in printed
    assert [sorted(row) for row in rows] == [["e2e_s", "tpot_s", "ttft_s"]] * 3
    assert rows[1]["ttft_s"] == pytest.approx((5 + 0.05 * 50 + 1 + 2 + 50e-4) / 1000)
    assert rows[1]["tpot_s"] == pytest.approx((20 + 2 + 50e-4) / 1000)
    assert rows[0]["ttft_s"] == rows[2]["ttft_s"] == pytest.approx((5 + 0.05 * 110 + 1 + 2 + 110e-4) / 1000)
    assert all(
        row["e2e_s"] == pytest.approx(row["ttft_s"] + row["tpot_s"] * output)
        for row, (_, _, output) in zip(rows, ROWS, strict=True)
    )


def test_requests_may_come_through_a_pipe(run: Run, tmp_path: Path) -> None:
    """Which can be read but once, and is the shell's `<(...)`."""
    assert run("simulate")[0] == 0
    from_file = (tmp_path / "out").read_text()
    reads, writes = os.pipe()
    os.write(writes, (tmp_path / "r.jsonl").read_bytes())
    os.close(writes)
    assert run("simulate", requests=f"/dev/fd/{reads}")[0] == 0
    os.close(reads)
    assert (tmp_path / "out").read_text() == from_file


def test_rate_scale_moves_arrivals_together(run: Run, tmp_path: Path) -> None:
    assert run("simulate", rate_scale=1000)[0] == 0
    fast = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert run("simulate")[0] == 0
    slow = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert fast[1] == slow[1] and fast[0]["ttft_s"] > slow[0]["ttft_s"]


def test_the_colocated_backend_has_no_use_for_decode(run: Run, tmp_path: Path) -> None:
    """It is passed over, and the output says so: the same command line serves both backends."""
    answers = set()
    for decode in (None, "tp=1", "tp=0,pp=0"):
        code, printed = run("simulate", backend="vllm", decode=decode)
        assert code == 0 and ("--decode was not used" in printed) == (decode is not None)
        answers.add((tmp_path / "out").read_text())
    assert len(answers) == 1


def test_no_input_is_written_over(run: Run, tmp_path: Path) -> None:
    for name, flag in (("r.jsonl", "--requests"), ("p.json", "--profile")):
        for command in ("simulate", "plan"):
            before = (tmp_path / name).read_text()
            code, printed = run(command, output=tmp_path / "." / name)
            assert code == 6 and f"that is the file of {flag}" in printed
            assert (tmp_path / name).read_text() == before


def test_a_plan_lists_every_placement(run: Run, tmp_path: Path) -> None:
    code, printed = run("plan")
    table = json.loads((tmp_path / "out").read_text())
    assert code == 0 and "best: " in printed
    assert [row["gpus"] for row in table] == [2, 3, 3, 3, 3] and len({json.dumps(row) for row in table}) == 5
    assert all(0 <= row["goodput_per_gpu"] < 4 for row in table)
    assert run("plan", backend="vllm", affinity="high")[0] == 0
    assert all(row["prefill"] == row["decode"] for row in json.loads((tmp_path / "out").read_text()))


@pytest.mark.parametrize(
    ("command", "changes", "code", "said"),
    [
        ("simulate", {"compat": "sarathi"}, 2, "invalid choice"),
        ("simulate", {"model": None}, 2, "--model is missing"),
        ("simulate", {"model": "huge"}, 2, "has no model 'huge'; it has tiny"),
        ("simulate", {"prefill": "tp=3"}, 2, "--prefill has tp=3; the profile has 'tiny' on 'distserve' at tp 1, 2"),
        ("simulate", {"decode": "tp=1,pp=3"}, 2, "--decode has pp=3; it must divide the 8 layers"),
        ("simulate", {"decode": "tp=1,tp=1"}, 2, "must be like tp=1,pp=1, each name once"),
        ("simulate", {"decode": "tp=-1"}, 2, "--decode: tp='-1' must be a whole number"),
        ("simulate", {"slo_ttft": 1}, 2, "--slo-ttft means nothing to simulate --compat distserve"),
        ("simulate", {"rate_scale": "1e-320"}, 5, "r.jsonl:3: arrival_s is 2, at a rate scale of 9.99989e-321"),
        ("simulate", {"rate_scale": "1e-320", "backend": "vllm"}, 5, "must be at most 1e+10"),
        ("plan", {"max_rate_per_gpu": "1e-11", "resolution": "1e-12"}, 5, "must be at most 1e+10"),
        ("simulate", {"rate_scale": 0}, 2, "'0' must be a number above 0"),
        ("simulate", {"profile": "/no/such"}, 2, "--profile is /no/such: cannot be read"),
        ("simulate", {"requests": "/no/such"}, 5, "/no/such: cannot be read"),
        ("simulate", {"output": "/no/such/file"}, 6, "--output is /no/such/file; its directory does not exist"),
        ("plan", {"slo_ttft": "nan"}, 2, "'nan' must be a number above 0"),
        ("plan", {"nodes": 0}, 2, "'0' must be a whole number"),
        ("plan", {"affinity": None}, 2, "--affinity is missing"),
        ("simulate", {"output": "o" * 300}, 6, "File name too long"),
        ("plan", {"output": "/"}, 6, "--output is /; is a directory"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    run: Run, command: str, changes: dict[str, object], code: int, said: str
) -> None:
    found, printed = run(command, **changes)
    assert found == code and said in printed and printed.splitlines()[-1].startswith(f"pdserve {command}: error: ")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"arrival_s": 1, "prompt_tokens": 5}', "'output_tokens' is missing"),
        ('{"arrival_s": -1, "prompt_tokens": 5, "output_tokens": 5}', "arrival_s is -1; it must be a number"),
        ('{"arrival_s": 1, "prompt_tokens": 5.5, "output_tokens": 5}', "prompt_tokens is 5.5"),
        ('{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 0}', "output_tokens is 0"),
        ("[1]", "must be a JSON object"),
        ("{", "not JSON"),
        ('{"arrival_s": 1, "prompt_tokens": 9999, "output_tokens": 5}', "the prefill instance holds"),
    ],
)
def test_a_bad_request_is_named_with_its_line(run: Run, tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 5}\n\n' + line + "\n")
    code, printed = run("simulate", requests=file, decode="tp=1", prefill="tp=1")
    assert code == 5 and f"{file}:3: " in printed and said in printed


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("schema",), "other/1", "schema is 'other/1'; it must be 'pd-latency-profile/1'"),
        (("formulas", "threshold_B"), 0, "formulas.threshold_B is 0; it must be a whole number"),
        (("models", "tiny", "layers"), "8", "models.tiny.layers is '8'"),
        (("models", "tiny", "kv_capacity_tokens"), [[1, 1]], "kv_capacity_tokens[0] is [1, 1]; it must be a list of 3"),
        (("models", "tiny", "engines", "distserve", 0, "prefill", 1), None, "engines.distserve[0].prefill[1] is None"),
        (("models", "tiny", "engines", "distserve"), [], "no coefficients of engine 'distserve' for model 'tiny'"),
    ],
)
def test_a_bad_profile_names_the_field(run: Run, tmp_path: Path, path: tuple[Any, ...], value: Any, said: str) -> None:
    profile = json.loads(json.dumps(PROFILE))
    inner = profile
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    (tmp_path / "bad.json").write_text(json.dumps(profile))
    code, printed = run("simulate", profile=tmp_path / "bad.json")
    assert code == 2 and said in printed


SPLITWISE = {
    "schema": "pd-latency-table/1",
    "curves": [
        {"model": "llama2-70b", "gpu": gpu, "tp": 8, "batch_tokens": [128, 256], "prompt_ms": [100, 200],
         "token_ms": [50, 50]}
        for gpu in ("a100-80gb", "h100-80gb")
    ],
}  # fmt: skip


def test_splitwise_takes_machines_instead_of_stages(run: Run, tmp_path: Path) -> None:
    """One prompt of 128 tokens alone: its curve, its transfer, and then its tokens."""
    (tmp_path / "s.json").write_text(json.dumps(SPLITWISE))
    (tmp_path / "one.jsonl").write_text('{"arrival_s": 1, "prompt_tokens": 128, "output_tokens": 5}')
    changes = {"compat": "splitwise", "profile": tmp_path / "s.json", "requests": tmp_path / "one.jsonl"}
    changes |= {"model": "llama2-70b", "prefill": "gpu=h100-80gb,machines=2", "decode": "gpu=a100-80gb"}
    code, printed = run("simulate", **changes)
    assert code == 0 and "within Splitwise's SLO" in printed
    row = json.loads((tmp_path / "out").read_text())
    sent_s = 128 * 2 * 8192 * 80 * 2 / (200 * 1024**3)
    assert row["ttft_s"] == pytest.approx(0.1) and row["e2e_s"] == pytest.approx(0.1 + sent_s + 4 * 0.05)
    assert row["tbt_s"] == pytest.approx((sent_s + 0.2) / 5)
    for wrong, said in (
        ({"prefill": "machines=2"}, "gpu=NAME is missing"),
        ({"decode": "gpu=b200"}, "has no 'llama2-70b' on b200 tp=8; it has it on a100-80gb tp=8; h100-80gb tp=8"),
        ({"model": "opt-13b"}, "Splitwise's rules are known for bloom-176b, llama2-70b"),
        ({"backend": "vllm"}, "--backend means nothing to simulate --compat splitwise"),
        ({"prefill": "gpu=h100-80gb,machines=1000000"}, "1 requests on 1,000,001 machines need lists of 26,077 GiB"),
    ):
        code, printed = run("simulate", **{**changes, **wrong})
        assert code == 2 and said in printed


CSV_COLUMNS = "model,hardware,prompt_size,batch_size,token_size,prompt_time,token_time,tensor_parallel"
CSV_RUNS = [(128, 1, 99, 50), (128, 1, 100, 49), (128, 1, 300, 70), (256, 1, 190, 50), (128, 2, 210, 50)]


def test_splitwise_reads_measured_runs_too(run: Run, tmp_path: Path) -> None:
    """Medians over the runs with as many prompt tokens in a batch: here they are the curve of SPLITWISE."""
    (tmp_path / "s.json").write_text(json.dumps(SPLITWISE))
    runs = [f"llama2-70b,h100-80gb,{p},{b},128,{prompt},{token},8" for p, b, prompt, token in CSV_RUNS]
    (tmp_path / "s.csv").write_text("\n".join([CSV_COLUMNS, *runs]))
    changes = {"compat": "splitwise", "model": "llama2-70b", "prefill": "gpu=h100-80gb", "decode": "gpu=h100-80gb"}
    answers = []
    for name in ("s.json", "s.csv"):
        assert run("simulate", **changes, profile=tmp_path / name)[0] == 0
        answers.append((tmp_path / "out").read_text())
    assert answers[0] == answers[1]
    for line, said in (
        ("llama2-70b,h100-80gb,128,1,128,-1,50,8", "prompt_time is '-1'; it must be a number above 0"),
        ("llama2-70b,h100-80gb,1.5,1,128,1,50,8", "prompt_size is '1.5'; it must be a whole number above 0"),
        ("llama2-70b,h100-80gb,128", "tensor_parallel is None"),
    ):
        (tmp_path / "bad.csv").write_text("\n".join([CSV_COLUMNS, *runs, line]))
        code, printed = run("simulate", **changes, profile=tmp_path / "bad.csv")
        assert code == 2 and f"{tmp_path / 'bad.csv'}:7: {said}" in printed
    (tmp_path / "bad.csv").write_text("model,hardware")
    assert (
        "its first line has no column 'tensor_parallel'" in run("simulate", **changes, profile=tmp_path / "bad.csv")[1]
    )


def test_neither_command_loads_torch_and_help_not_even_numba() -> None:
    code = "import sys, deploy.cli\n"
    code += "for name in ('simulate', 'plan'):\n"
    code += "    try: deploy.cli.main([name, '--help'])\n    except SystemExit: pass\n"
    code += "print('numba' in sys.modules, 'torch' in sys.modules)\n"
    code += "import deploy.compat.distserve, placement.compat.distserve.search\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["False False", "False"]
