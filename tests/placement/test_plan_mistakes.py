"""What cannot be asked of `pdserve plan` and `simulate`: one line and an exit code for each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("command", "changes", "code", "said"),
    [
        ("plan", {"gpus": "0"}, 2, "--gpus: '0' must be a whole number"),
        ("plan", {"gpus": None}, 2, "--gpus is missing"),
        ("plan", {"model": None}, 2, "--model is missing"),
        ("plan", {"model": "no-such"}, 4, "--model is 'no-such'"),
        ("plan", {"workload": "azure-con"}, 2, "--workload is 'azure-con'"),
        ("plan", {"workload": "/no/such.csv"}, 5, "/no/such.csv"),
        ("plan", {"workload": "input=0,output=3"}, 2, "--workload input is '0'"),
        ("plan", {"gpu": "h1000"}, 2, "--gpu: GPU type 'h1000' is not known"),
        ("plan", {"decode_gpu": "h100,x"}, 2, "--decode-gpu: GPU type 'x' is not known"),
        ("plan", {"tp": "1,zwei"}, 2, "--tp: 'zwei' must be a whole number"),
        ("plan", {"pp": "0"}, 2, "--pp: '0' must be a whole number"),
        ("plan", {"chunk": "a"}, 2, "--chunk: 'a' must be a whole number"),
        ("plan", {"local_prefill_max_tokens": "-1"}, 2, "--local-prefill-max-tokens"),
        ("plan", {"rate": "inf"}, 2, "--rate: 'inf' must be a number above 0"),
        ("plan", {"price": "gpus"}, 2, "--price means nothing without --rate"),
        ("plan", {"price": "euro", "rate": 1}, 2, "--price: invalid choice: 'euro'"),
        ("plan", {"max_cost": "0"}, 2, "--max-cost: '0' must be a number above 0"),
        (
            "plan",
            {"cost_per_hour": "x"},
            2,
            "--cost-per-hour is 'x': 'x' must be a number above 0; give one for all, or",
        ),
        ("plan", {"cost_per_hour": "a100=1"}, 2, "--cost-per-hour names a100; the types are h100"),
        ("plan", {"power_w": "h100=0"}, 2, "--power-w is 'h100=0': '0' must be a number above 0"),
        ("plan", {"max_cost": 3, "gpu": "this-machine"}, 2, "--max-cost needs the price of this-machine, which is not"),
        ("plan", {"validate": "mock"}, 2, "-o PROFILE.json --mock-delays` measures here"),
        ("plan", {"validate": "model"}, 2, "plan --validate needs --profile with what `pdserve profile MODEL"),
        ("plan", {"validate": "mock", "one_machine": True}, 2, "--validate mock and --one-machine need two profiles"),
        ("plan", {"validate": "mock"}, 2, "--validate runs on this machine, the plan would be for h100: leave out"),
        ("plan", {"validate": "model"}, 2, "--validate runs --model, and llama-3.1-8b is no checkpoint directory"),
        ("plan", {"validate": "mock", "affinity": "low"}, 2, "--validate starts one cluster, --affinity low may"),
        ("plan", {"validate": "mock", "attainment": 0.8}, 2, "--attainment means nothing to plan --validate"),
        (
            "plan",
            {"bounds": True, "quick": None, "processes": None, "validate": "mock"},
            2,
            "--validate means nothing to",
        ),
        ("plan", {"one_machine": True}, 2, "--one-machine needs --profile with what workers cost one another"),
        ("plan", {"one_machine": True}, 2, "--one-machine needs --kv-bytes, of each worker"),
        ("simulate", {"one_machine": True}, 2, "--one-machine needs --profile"),
        ("plan", {"one_machine": True, "affinity": "low"}, 2, "--one-machine is one cluster, --affinity low may"),
        ("plan", {"kv_bytes": "8Q"}, 2, "--kv-bytes: '8Q' must be bytes above 0, like 536870912 or 512M"),
        ("plan", {"validate": "what"}, 2, "--validate: invalid choice: 'what'"),
        ("plan", {"max_cost": 2}, 2, "--max-cost is 2; the least placement, colocated 1xh100, chunk 512, takes 4."),
        ("plan", {"max_cost": 2, "max_power": 100}, 2, "--max-power is 100; the least placement, colocated 1xh100, "),
        ("plan", {"max_power": 100, "rate": 3, "gpus": None}, 2, "--max-power is 100; the least placement, coloca"),
        ("plan", {"gpus": 1, "only": "split"}, 2, "--gpus is 1; the least placement, prefill 1xh100 + decode 1xh100,"),
        (
            "plan",
            {"gpu": "h100-pcie,a100", "max_cost": 3, "max_power": 375},
            2,
            "no placement keeps within --gpus 3 and -",
        ),
        ("plan", {"max_power": "x"}, 2, "--max-power: 'x' must be a number above 0"),
        ("plan", {"attainment": "1"}, 2, "--attainment: 1 must be above 0 and below 1"),
        ("plan", {"slo_ttft": "-1"}, 2, "--slo-ttft: '-1' must be a number above 0"),
        ("plan", {"slo_tpot": None}, 2, "--slo-tpot is missing"),
        ("plan", {"only": "both"}, 2, "--only: invalid choice: 'both'"),
        ("plan", {"affinity": "mid"}, 2, "--affinity: invalid choice: 'mid'"),
        ("plan", {"nodes": 2}, 2, "--nodes means nothing to plan without --compat"),
        ("plan", {"max_model_len": 20}, 2, "--max-model-len is 20; the workload's longest request has"),
        ("plan", {"kv_bytes": "0"}, 2, "--kv-bytes: '0' must be bytes above 0"),
        ("plan", {"profile": "/no/such"}, 5, "/no/such"),
        ("plan", {"output": "/no/such/file"}, 6, "--output is /no/such/file; its directory does not exist"),
        ("plan", {"output": "/proc/x"}, 6, "--output is /proc/x; No such file"),
        ("plan", {"report": "/no/such/file"}, 6, "--report is /no/such/file; its directory does not exist"),
        ("plan", {"bounds": True, "processes": None, "quick": None, "output": "x"}, 2, "--output means nothing to"),
        ("simulate", {"decode": None}, 2, "--decode is missing"),
        ("simulate", {"decode": "workers=x"}, 2, "--decode: workers='x' must be a whole number"),
        ("plan", {"seed": "-1"}, 2, "--seed: '-1' must be a whole number, at least 0"),
        ("simulate", {"seed": "-1"}, 2, "--seed: '-1' must be a whole number, at least 0"),
        ("plan", {"gpu": ""}, 2, "--gpu: GPU type '' is not known"),
        ("simulate", {"gpu": ""}, 2, "--gpu: GPU type '' is not known"),
        ("plan", {"report": "x.html", "output": "./x.html"}, 2, "--output is x.html and --report is x.html; they must"),
        ("plan", {"report": "x.pdf"}, 2, "--report is x.pdf; it must end in .html or .png"),
        (
            "plan",
            {"kv_bytes": "1e300"},
            2,
            "--kv-bytes: '1e300' must be bytes above 0, like 536870912 or 512M, at most",
        ),
        ("plan", {"profile": "pyproject.toml"}, 5, "--profile pyproject.toml: not JSON"),
        ("simulate", {"slo_ttft": "5"}, 0, "within TTFT 5 s: 100.00 %"),
        ("plan", {"rate": "1e-300"}, 2, "--rate is 1e-300; it must be at least 0.0001 requests/s"),
        ("simulate", {"rate": "1e-300"}, 5, "s; at most 10,000,000 s are simulated: give a higher --rate or fewer"),
        ("simulate", {"decode": "workers=9999"}, 2, "--decode: workers is 9999; it must be at most 8,192"),
        ("simulate", {"prefill": "workers=5000,pp=2"}, 2, "--prefill: workers is 5000; it must be at most 4,096"),
        ("plan", {"tp": "3"}, 2, "--tp is 3; it must divide the 32 heads of llama-3.1-8b and be at most 3: 1, 2"),
        ("plan", {"tp": "4"}, 2, "--tp is 4; it must divide the 32 heads of llama-3.1-8b and be at most 3: 1, 2"),
        ("plan", {"pp": "3,5", "bounds": True, "quick": None, "processes": None}, 2, "--pp is 3,5; it must divide the"),
        ("plan", {"tp": "1,3"}, 0, "left out: --tp 3; it must divide the 32 heads of llama-3.1-8b"),
        ("simulate", {"prefill": "tp=3"}, 2, "--prefill: tp is 3; it must divide the 32 heads of llama-3.1-8b: 1, 2,"),
        ("simulate", {"decode": "tp=3"}, 2, "--decode: tp is 3; it must divide the 32 heads of llama-3.1-8b: 1, 2, 4"),
        ("simulate", {"decode": "pp=33"}, 2, "--decode: pp is 33; it must be at most the 32 layers of llama-3.1-8b"),
        ("simulate", {"decode": "workers=1", "kv_bytes": "1M"}, 1, "--decode: 1xh100: 1 MiB of KV a lane, one request"),
        ("simulate", {"decode": "workers=1", "kv_bytes": "1M"}, 1, "tokens needs 56 MiB; give more --kv-bytes, or le"),
        ("plan", {"kv_bytes": "1k"}, 1, "1 KiB of KV a lane, one request of 441 tokens needs 56 MiB; give more --kv-"),
        ("simulate", {"decode": "gpu=x"}, 2, "--decode: gpu: GPU type 'x' is not known"),
        ("simulate", {"gpu": "h100,a100"}, 2, "--gpu is h100,a100; simulate runs one placement: give one type"),
        ("simulate", {"chunk": "x"}, 2, "--chunk: 'x' must be a whole number"),
        ("simulate", {"decode": "size=3"}, 2, "--decode is 'size=3'; it must be like"),
        ("simulate", {"rate": "0"}, 2, "--rate: '0' must be a number above 0"),
        ("simulate", {"output": "/"}, 6, "--output is /; is a directory"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    run: Run, command: str, changes: dict[str, object], code: int, said: str
) -> None:
    found, printed = run(command, **changes)
    assert (found, said in printed) == (code, True), printed
    assert "Traceback" not in printed
    assert len(printed.strip().splitlines()[-1]) < 400
