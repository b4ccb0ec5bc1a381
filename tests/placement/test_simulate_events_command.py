"""`pdserve simulate --event`: what it tells of deaths and role changes, and what cannot be asked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.planning import simulate
from deploy.planning.disturbance import Targets, again_s
from placement.simulator.requests import Outcome
from placement.simulator.results import RequestColumns

Run = Callable[..., tuple[int, str]]
SPLIT = {"prefill": "2", "decode": "2", "workload": "input=200..300,output=40", "rate": 20, "num_requests": 200}


def rows_of(said: str) -> dict[str, list[str]]:
    """The cells of the table by the first of each line."""
    lines = said[said.index("  by arrival") :].splitlines()
    table = {first: cells for first, *cells in (re.split(r"\s{2,}", line.strip()) for line in lines)}
    return {first: cells for first, cells in table.items() if cells}


def test_a_death_and_a_return_are_told_by_arrival(run: Run, tmp_path: Path) -> None:
    events = ["6:up:decode-0", "3:down:decode-0", "3:down:decode-1", "5:up:decode-1"]
    out = tmp_path / "rows.jsonl"
    code, said = run("simulate", **SPLIT, slo_ttft=0.5, slo_tpot=0.05, event=events, output=out)
    assert code == 0
    told = ["3 s: decode-0 dies", "3 s: decode-1 dies", "5 s: decode-1 is up again", "6 s: decode-0 is up again"]
    assert [line.strip() for line in said.splitlines() if " s: decode" in line] == told
    table = rows_of(said)
    assert list(table) == ["by arrival", "before 3 s", "3 to 5 s", "5 to 6 s", "from 6 s", "without events"]
    assert table["by arrival"] == ["requests", "not served", "within", "TTFT p50, p90", "TPOT p50, p90"]
    spans = [table[name] for name in ("before 3 s", "3 to 5 s", "5 to 6 s", "from 6 s")]
    assert sum(int(cells[0]) for cells in spans) == 200
    refused, lost = int(table["3 to 5 s"][1]), int(table["before 3 s"][1])
    assert refused == int(table["3 to 5 s"][0]) > 20 and table["3 to 5 s"][2:] == ["0.00 %", "-", "-"]
    assert 0 < lost < 20 and table["from 6 s"][1:3] == ["0", "100.00 %"] == table["without events"][1:3]
    assert (
        f"{refused} (no decode worker is up); nothing is retried" in said and "decode worker decode-0 was lost" in said
    )
    assert f"  not served: {refused + lost}\n" in said
    assert re.search(r"no worse than without events from 5(\.\d)? s on, 0(\.\d)? s after decode-1 is up again\n", said)
    assert out.read_text().count('"ttft_s": null') == refused + lost


def test_a_role_change_is_told_when_it_begins_and_when_it_is_done(run: Run) -> None:
    code, said = run("simulate", **SPLIT, event="4:role:prefill-1:decode:takes=2.5")
    began, done = "4 s: prefill-1 takes no more requests, to become a decode worker", "s: prefill-1 is a decode worker"
    assert code == 0 and began in said and "not served" not in said.split("by arrival")[0]
    done_s = float(re.search(rf"  (\S+) {done}", said).group(1))  # type: ignore[union-attr]
    assert 6.5 <= done_s < 7.0
    table = rows_of(said)
    assert list(table) == ["by arrival", "before 4 s", f"4 to {done_s:g} s", f"from {done_s:g} s", "without events"]
    assert "within" not in table["by arrival"]  # no targets were given


def test_lanes_of_a_pipeline_die_as_one_and_an_event_behind_the_end_is_said_to_be_one(run: Run) -> None:
    pipeline = SPLIT | {"decode": "workers=2,pp=2"}
    code, said = run("simulate", **pipeline, event=["3:down:decode-0", "900:up:decode-0"])
    assert code == 0
    assert "(decode worker decode-0.0 was lost), " in said and "(decode worker decode-0.1 was lost)" in said
    assert "900 s: decode-0 is up again, after the last request\n" in said
    assert list(rows_of(said)) == ["by arrival", "before 3 s", "3 to 900 s", "without events"]


def test_a_few_requests_tell_nothing_and_a_long_run_is_said_to_take_long(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = SPLIT | {"num_requests": 20}
    assert "20 requests from 0 s on: too few to tell" in run("simulate", **few, event="0:down:decode-0")[1]
    assert "compiled" not in run("simulate", **few, event="0:down:decode-0")[1]
    monkeypatch.setattr(simulate, "_LONG_S", 0.0)
    assert "--event: not compiled, 20 requests take about" in run("simulate", **few, event="0:down:decode-0")[1]


@pytest.mark.parametrize(
    ("events", "said"),
    [
        (["30"], "--event: '30' must be like 30:down:decode-0, 60:up:decode-0 or 45:role:prefill-1:decode:takes=5"),
        (["30:kill:decode-0"], "--event: '30:kill:decode-0' must be like"),
        (["30:down:"], "--event: '30:down:' must be like"),
        (["30:down:decode-0:x"], "--event: '30:down:decode-0:x' must be like"),
        (["30:role:decode-0"], "--event: '30:role:decode-0' must be like"),
        (["30:role:decode-0:both"], "the role is 'both'; it must be prefill or decode"),
        (["30:role:prefill-0:decode:5"], "must be like"),
        (["30:role:prefill-0:decode:takes=-5"], "takes is '-5'; it must be seconds, from 0 to 10,000,000"),
        (["-1:down:decode-0"], "--event: '-1:down:decode-0': the time is '-1'; it must be seconds, from 0 to"),
        (["nan:down:decode-0"], "the time is 'nan'; it must be seconds"),
        (["5s:down:decode-0"], "the time is '5s'; it must be seconds"),
        (["1e9:down:decode-0"], "the time is '1e9'; it must be seconds, from 0 to 10,000,000"),
        (
            ["1:down:decode-2"],
            "--event 1:down:decode-2: there is no worker decode-2; there are prefill-0 and decode-0 to",
        ),
        (["1:down:decode-0.1"], "decode-0.1 is a part of decode-0, which dies and changes as a whole: name that"),
        (["1:up:decode-0"], "--event 1:up:decode-0: decode-0 is up then"),
        (["5:down:decode-0", "3:down:decode-0"], "--event 5:down:decode-0: decode-0 is down since 3 s"),
        (["3:down:prefill-0", "5:role:prefill-0:decode"], "prefill-0 is down since 3 s"),
        (["1:role:decode-0:decode"], "decode-0 is a decode worker already"),
        (["1:role:prefill-0:decode", "9:role:prefill-0:decode"], "--event 9:role:prefill-0:decode: prefill-0 is a dec"),
    ],
)
def test_what_cannot_happen_is_one_line_and_exit_code_2(run: Run, events: list[str], said: str) -> None:
    code, output = run("simulate", **SPLIT | {"prefill": "1"}, event=events)
    assert code == 2 and said in output and output.count("\n") == 1


def test_colocated_workers_have_no_other_role_and_other_modes_no_events(run: Run) -> None:
    code, said = run("simulate", event="1:role:decode-0:prefill")
    assert code == 2 and "the workers are colocated, nothing is known of links between them: give --prefill" in said
    code, said = run("simulate", event="1:down:decode-0", compat="splitwise")
    assert code == 2 and "--event" in said


def columns(ttft_s: list[float]) -> RequestColumns:
    """Requests that come every second; nan was not served."""
    times = np.array(ttft_s)
    outcome = np.where(np.isnan(times), Outcome.FAILED, Outcome.FINISHED)
    values: dict[str, Any] = {field.name: np.zeros(len(times)) for field in fields(RequestColumns)}
    values |= {"arrival_s": np.arange(len(times), dtype=float), "outcome": outcome, "ttft_s": times}
    return RequestColumns(**values)


def test_it_is_worse_until_the_last_of_those_that_miss_more() -> None:
    calm = columns([0.1] * 1000)
    bad = [0.1] * 300 + [0.9] * 150 + [math.nan] * 50 + [0.1] * 500
    assert again_s(columns(bad), calm, 300.0, Targets(0.5)) == 500.0
    assert again_s(columns(bad), calm, 300.0, Targets()) == 500.0  # without targets: the usual P90
    assert again_s(columns(bad), calm, 500.0, Targets(0.5)) is None
    assert again_s(columns(bad[:480]), columns([0.1] * 480), 300.0, Targets(0.5)) == math.inf


def test_chance_is_not_taken_for_the_events() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        calm, rows = (columns((rng.random(5000) + 0.05).tolist()) for _ in range(2))
        for targets in (Targets(1.0), Targets(0.8, 1.0), Targets()):  # 5, 25 and 10 % miss in both
            assert again_s(rows, calm, 0.0, targets) is None
        better = columns((0.5 * rng.random(5000)).tolist())
        assert again_s(better, calm, 0.0, Targets(0.8)) is None
