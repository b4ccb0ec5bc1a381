"""`pdserve plan` by pdserve's own rules: answers, files, exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pytest

Run = Callable[..., tuple[int, str]]


def test_a_plan_answers_in_a_line_and_writes_plan_and_report(run: Run, tmp_path: Path) -> None:
    code, said = run("plan", output=tmp_path / "P.json", report=tmp_path / "R.html")
    plan = json.loads((tmp_path / "P.json").read_text())
    assert code == 0 and "requests/s" in said.splitlines()[0] and "95 % confidence" in said
    assert said.splitlines()[1].startswith(("best split: ", "best colocated: ", "no split", "no colocated"))
    predicted = plan["predicted"]
    low, high = predicted["confidence_rps"]
    assert 0 < low <= predicted["goodput_rps"] < high
    assert predicted["attainment"] > 0.85 and predicted["ttft_s"]["p90"] < 0.25
    assert 0 < predicted["utilisation"]["decode"] <= 1
    assert [one["change"] for one in plan["what_if"]][:2] == ["as asked", "prompts double"]
    assert plan["what_if"][0]["rate"] == pytest.approx(predicted["goodput_rps"])
    assert plan["placement"]["placement"] == plan["candidates"][0]["placement"]
    page = (tmp_path / "R.html").read_text()
    assert page.count("<img") >= 3 and "Every placement" in page and said.splitlines()[0].split(":")[0] in page


def test_the_report_may_be_one_picture(run: Run, tmp_path: Path) -> None:
    code, said = run("plan", report=tmp_path / "R.png", rate=20)
    picture = matplotlib.image.imread(tmp_path / "R.png")
    assert code == 0 and "report: " in said
    assert picture.shape[0] > 800 and picture.shape[1] > 800 and picture.std() > 0.05


def test_bounds_alone_need_no_simulation(run: Run) -> None:
    code, said = run("plan", bounds=True, quick=None, processes=None)
    assert code == 0 and "at most" in said and "prefill compute" in said
    assert run("plan", bounds=True, quick=None, processes=None, slo_ttft=1e-6)[0] == 1


def test_the_least_for_a_rate_needs_no_number_of_gpus(run: Run) -> None:
    code, said = run("plan", rate=20, gpus=None)
    assert code == 0 and "carries 20 requests/s" in said
    assert re.search(r"at 20 requests/s \S+ % of the requests \(95 % confidence \S+ to \S+\) meet both targets: ", said)
    assert re.search(r"at most it carries \S+ requests/s; 95 % confidence \S+ to \S+", said)
    code, said = run("plan", rate=20, gpus=None, price="cost", prefill_gpu="h100,a100", decode_gpu="a100,h100+cap")
    assert code == 0 and "$/h" in said


def test_a_budget_of_money_is_enough(run: Run) -> None:
    code, said = run("plan", gpus=None, max_cost=10, no_what_if=True)
    assert code == 0 and "if prompts" not in said, said
    assert said.startswith(("colocated 2xh100", "prefill 1xh100 + decode 1xh100"))


def test_what_nothing_can_serve_is_exit_code_1(run: Run) -> None:
    code, said = run("plan", slo_ttft=1e-5)
    assert code == 1 and "no placement within --gpus 3 meets TTFT" in said


def test_a_report_counts_machines(run: Run, with_subject: Callable[..., Path], tmp_path: Path) -> None:
    report = tmp_path / "R.html"
    flags = {"profile": with_subject(tmp_path / "p.json"), "kv_bytes": "4G", "gpus": 2, "no_what_if": True}
    code, said = run("plan", report=report, **flags)
    assert code == 0 and "per machine" in said
    words = re.sub(r"base64,[^\"]*", "", report.read_text())  # the letters of a picture are any
    assert "<th>machines</th>" in words and "GPU" not in words


def test_a_report_does_not_say_that_what_was_given_up_serves_nothing(run: Run, tmp_path: Path) -> None:
    report = tmp_path / "R.html"
    code, said = run("plan", report=report, workload="input=2000,output=300", gpus=4, tp="1,2,4", no_what_if=True)
    given_up = [line.split("/s")[0].strip() for line in said.splitlines() if line.lstrip().startswith("under ")]
    assert code == 0 and given_up
    assert all(f"<td>{words}</td>" in report.read_text() for words in given_up)


def test_prefill_0_is_colocated_in_simulate_as_it_is_in_serve(run: Run) -> None:
    said = [run("simulate", num_requests=20, prefill=one)[1] for one in (None, "0", "workers=0", "2", "workers=2")]
    assert said[0] == said[1] == said[2] and said[0].startswith("colocated 1xh100, chunk 2048: 20 requests")
    assert said[3] == said[4] and said[3].startswith("prefill 2xh100 + decode 1xh100")
    assert (
        run("simulate", decode="0")[1]
        .strip()
        .endswith("--decode: workers='0' must be a whole number from 1 to 1,000,000")
    )


def test_simulate_tells_how_much_was_found_cached_where_prompts_share(run: Run) -> None:
    shared = {"workload": "input=200,prefix=160,output=5,arrivals=constant", "num_requests": 20, "rate": 1}
    for prefill in (None, "1"):
        assert "  prompt tokens found cached: 76 %\n" in run("simulate", prefill=prefill, **shared)[1]
    assert "cached" not in run("simulate", no_enable_prefix_caching=True, **shared)[1]
    assert "cached" not in run("simulate", num_requests=20)[1]


def test_simulate_tells_the_rate_that_was_asked_for_beside_that_of_the_requests_drawn(run: Run) -> None:
    code, few = run("simulate", rate=5, num_requests=40)
    assert code == 0 and re.search(r"40 requests at \S+/s \(5/s asked for\)$", few.splitlines()[0])
    code, even = run("simulate", rate=5, num_requests=40, workload="input=9,output=9,arrivals=constant")
    assert code == 0 and even.splitlines()[0].endswith("40 requests at 5/s")
    code, one = run("simulate", rate=5, num_requests=1)
    assert code == 0 and one.splitlines()[0].endswith(": 1 request")
