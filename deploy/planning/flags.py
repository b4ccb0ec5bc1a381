"""Flags of the native modes of plan and simulate."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploy.arguments import above_zero, count, whole
from deploy.planning.events import asked_event
from pdserve.byte_sizes import memory_size

SHARED = (
    "workload",
    "gpu",
    "max_model_len",
    "block_size",
    "max_num_seqs",
    "kv_bytes",
    "no_enable_prefix_caching",
    "one_machine",
    "seed",
)
PLAN = (
    "gpus", "prefill_gpu", "decode_gpu", "tp", "pp", "chunk", "rate", "price", "max_cost", "max_power",
    "cost_per_hour", "power_w", "attainment", "only", "processes", "report", "quick", "bounds",
    "local_prefill_max_tokens", "validate", "no_what_if",
)  # fmt: skip
ONLY_LIVE = ("every", "api_key", "tls_ca", "tls_cert", "tls_key")
SIMULATE = ("rate", "num_requests", "chunk", "event")


def add_shared(parser: argparse.ArgumentParser) -> None:
    """What is served, on what."""
    group = parser.add_argument_group("without --compat: the cluster as pdserve runs it")
    group.add_argument(
        "--workload", metavar="W", help="a trace file, a preset (azure-conv, ...), or input=N,output=N,..."
    )
    group.add_argument("--gpu", metavar="TYPE", help="h100, a100, ..., or this-machine (default: h100)")
    group.add_argument(
        "--max-model-len", type=count, metavar="N", help="context (default: the workload's longest request)"
    )
    group.add_argument("--block-size", type=count, metavar="N", help="tokens per KV block (default: 16)")
    group.add_argument("--max-num-seqs", type=count, metavar="N", help="sequences in a step (default: 256)")
    group.add_argument(
        "--kv-bytes", type=memory_size, metavar="B", help="KV memory of each worker, like 8G (default: what is left)"
    )
    group.add_argument("--no-enable-prefix-caching", action="store_true", default=None, help="forget finished prompts")
    group.add_argument(
        "--one-machine", action="store_true", default=None,
        help="all workers share this machine's cores, as `pdserve profile` saw them do; a plan is then --quick "
        "(default: each has a machine of its own)",
    )  # fmt: skip
    group.add_argument("--seed", type=whole(0), metavar="N", help="of the requests drawn (default: 0)")


def add_plan(parser: argparse.ArgumentParser) -> None:
    """The question, and how far to look."""
    add_shared(parser)
    group = parser.add_argument_group("the question (without --compat)")
    group.add_argument(
        "--gpus", type=count, metavar="N", help="at most so many, both pools (default: what a budget or --rate needs)"
    )
    group.add_argument(
        "--rate", type=above_zero, metavar="R", help="carry R requests/s at the least price, not the most"
    )
    group.add_argument("--price", choices=("gpus", "cost", "power"), help="what is to be least (default: gpus)")
    group.add_argument("--max-cost", type=above_zero, metavar="D", help="dollars per hour, at most")
    group.add_argument("--max-power", type=above_zero, metavar="W", help="watts, at most")
    group.add_argument(
        "--cost-per-hour", metavar="[TYPE=]X,...",
        help="dollars of one GPU (default: the profile's, else the catalogue's list price)",
    )  # fmt: skip
    group.add_argument("--power-w", metavar="[TYPE=]W,...", help="likewise, watts")
    group.add_argument(
        "--attainment", type=above_zero, metavar="A", help="share that meets both targets (default: 0.9)"
    )
    group.add_argument("--prefill-gpu", metavar="TYPE[,TYPE]", help="types for the prefill pool (default: --gpu)")
    group.add_argument("--decode-gpu", metavar="TYPE[,TYPE]", help="types for the decode pool (default: --gpu)")
    group.add_argument("--tp", metavar="N,...", help="tensor parallel sizes to try (default: 1,2,4,8)")
    group.add_argument("--pp", metavar="N,...", help="pipeline stages to try (default: 1)")
    group.add_argument("--chunk", metavar="N,...", help="token budgets of a step to try (default: 512,2048)")
    group.add_argument(
        "--local-prefill-max-tokens", metavar="N,...",
        help="try also: a decode worker that lacks up to N tokens of a prompt may compute them itself",
    )  # fmt: skip
    group.add_argument("--only", choices=("split", "colocated"), help="try only these (default: both)")
    group.add_argument(
        "--bounds", action="store_true", default=None, help="only what is possible at most: no simulation"
    )
    group.add_argument("--quick", action="store_true", default=None, help="fewer requests, wider confidence")
    group.add_argument("--no-what-if", action="store_true", default=None, help="the answer alone, sooner")
    group.add_argument("--processes", type=count, metavar="N", help="side by side (default: all cores)")
    group.add_argument("--report", type=Path, metavar="F.html", help="plots and tables for people; F.png: the plots")
    group.add_argument(
        "--validate", nargs="?", const="model", choices=("model", "mock"),
        help="run the plan and two others here, with --model or the mock engine, and hold the prediction against it",
    )  # fmt: skip


def add_simulate(parser: argparse.ArgumentParser) -> None:
    """One run."""
    add_shared(parser)
    group = parser.add_argument_group("the run (without --compat)")
    group.add_argument("--rate", type=above_zero, metavar="R", help="requests/s (default: the workload's)")
    group.add_argument("--num-requests", type=count, metavar="N", help="default: 1000, or the whole trace")
    group.add_argument("--chunk", metavar="N", help="token budget of a step (default: 2048)")
    group.add_argument("--slo-ttft", type=above_zero, metavar="S", help="seconds to the first token")
    group.add_argument("--slo-tpot", type=above_zero, metavar="S", help="seconds per token after it")
    group.add_argument(
        "--event", type=asked_event, action="append", metavar="S:WHAT:WORKER",
        help="S seconds into the run a worker dies (30:down:decode-0), is up again (60:up:decode-0), or changes its "
        "role (45:role:prefill-1:decode): it ends what it has, and is back at once or takes=5 seconds later "
        "(...:decode:takes=5); workers are prefill-0, prefill-1, ..., decode-0, ...; may be given many times",
    )  # fmt: skip
