"""The plan as data: what `pdserve serve --plan` starts, what was predicted of it, and everything it was chosen over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pdserve.plan_format import FORMAT, KEY
from placement.search.answer import Answer, Outcome
from placement.search.build import Serving
from placement.search.candidate import Candidate, Pool
from placement.search.pareto import front
from placement.search.question import Price, Question
from placement.search.whatif import Consequence
from placement.simulator.results import RequestColumns

_MOST_LISTED = 500  # so that the file stays small; the best are listed


def plan_to_json(
    outcome: Outcome, question: Question, serving: Serving, what_if: Sequence[Consequence], about: dict[str, Any]
) -> dict[str, Any]:
    """The whole file. `serve` holds settings of `pdserve serve`; the rest is for people and dashboards."""
    best = outcome.best
    return {
        KEY: FORMAT,
        "serve": {} if best is None else serve_settings(best.candidate, serving),
        "placement": None if best is None else _answer(best),
        "predicted": None if best is None else predicted(best, question),
        "slo": {
            "ttft_s": question.slo.ttft_s, "tpot_s": question.slo.tpot_s, "attainment": question.slo.attainment,
        },
        "asked": {"rate": question.rate, "price": question.price.value, **about},
        "complete": outcome.complete,
        "scaled": None if outcome.scaled is None else {
            "copies": outcome.scaled.copies, "num_joined": outcome.scaled.num_joined,
            "num_whole": outcome.scaled.num_whole,
        },
        "what_if": [{"change": one.change.name, "rate": one.rate, "binding": one.binding} for one in what_if],
        "front": {
            price.value: [_step(answer, price) for answer in front(outcome.answers, price)] for price in Price
        },
        "candidates": [_answer(answer) for answer in outcome.answers[:_MOST_LISTED]],
        "num_candidates": len(outcome.answers),
        "do_not_fit": sorted(set(outcome.unfit))[:_MOST_LISTED],
    }  # fmt: skip


def serve_settings(candidate: Candidate, serving: Serving) -> dict[str, Any]:
    """Settings of `pdserve serve`, whose workers are whole models on one device: TP and PP cannot be said there.

    Of how workers were taken to be run, what changes the batches. Not `max_model_len`: that is the workload's longest
    request, which others may exceed.
    """
    prefill = candidate.prefill
    local = {"local_prefill_max_tokens": candidate.local_prefill_tokens} if candidate.local_prefill_tokens else {}
    return {
        **local,
        "prefill": 0 if prefill is None else prefill.workers,
        "decode": candidate.decode.workers,
        "max_num_batched_tokens": candidate.chunk_tokens,
        "max_num_seqs": serving.scheduler(candidate.chunk_tokens).max_num_seqs,
        "block_size": serving.block_size,
        "enable_prefix_caching": serving.prefix_caching,
        **({} if serving.kv_bytes is None else {"kv_bytes": int(serving.kv_bytes)}),
    }


def predicted(answer: Answer, question: Question) -> dict[str, Any]:
    """What the simulation says of the chosen placement at its goodput."""
    goodput = answer.goodput
    assert goodput is not None
    found: dict[str, Any] = {
        "goodput_rps": goodput.rate,
        "confidence_rps": [goodput.low, goodput.high],
        "goodput_per_gpu_rps": goodput.rate / answer.candidate.gpus,
        "binding": answer.reason,
    }
    if question.rate is not None:  # goodput_rps is the rate that was asked for, confidence_rps that of the most
        asked = goodput.probes[0]
        found["most_rps"] = goodput.most
        found["attainment_confidence"] = [asked.share - asked.half_width, asked.share + asked.half_width]
        found["sure"] = answer.surely_good(question.slo.attainment)
    if goodput.at_rate is not None:
        rows = goodput.at_rate.requests
        found["attainment"] = rows.attainment(question.slo.ttft_s, question.slo.tpot_s)
        found |= percentiles(rows)
    if answer.used is not None:
        found["utilisation"] = asdict(answer.used)
    return found


def percentiles(rows: RequestColumns) -> dict[str, dict[str, float]]:
    """P50, P90 and P99 of what clients see, and the mean of each phase."""
    found = {
        name: {f"p{q}": float(np.nanpercentile(getattr(rows, name), q)) for q in (50, 90, 99)}
        for name in ("ttft_s", "tpot_s", "e2e_s")
    }
    phases = ("queue_s", "prefill_s", "transfer_s", "decode_wait_s", "decode_s")
    return {**found, "phase_means_s": {name: float(np.nanmean(getattr(rows, name))) for name in phases}}


def _answer(answer: Answer) -> dict[str, Any]:
    candidate, goodput = answer.candidate, answer.goodput
    return {
        "placement": str(candidate),
        "prefill": None if candidate.prefill is None else _pool(candidate.prefill),
        "decode": _pool(candidate.decode),
        "chunk_tokens": candidate.chunk_tokens,
        "local_prefill_tokens": candidate.local_prefill_tokens,
        "replicas": candidate.replicas,
        "gpus": candidate.gpus,
        "cost_per_hour": candidate.cost_per_hour,
        "power_w": candidate.power_w,
        "simulated": goodput is not None,
        "goodput_rps": answer.rate,
        "bound_rps": answer.bounds.rate,
        "bound_by": answer.bounds.binding,
        "reason": answer.reason,
        "probes": [] if goodput is None else [
            {"rate": probe.rate, "attainment": probe.share, "half_width": probe.half_width,
             "requests": probe.num_requests, "verdict": probe.verdict.value} for probe in goodput.probes
        ],
    }  # fmt: skip


def _step(answer: Answer, price: Price) -> dict[str, Any]:
    return {"placement": str(answer.candidate), "price": price.of(answer.candidate), "goodput_rps": answer.rate}


def _pool(pool: Pool) -> dict[str, Any]:
    return {"gpu": pool.gpu.name, "workers": pool.workers, "tp": pool.tp, "pp": pool.pp}
