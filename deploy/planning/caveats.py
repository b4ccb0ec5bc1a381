"""What a user should know before he believes an answer: of what its step times are, and how far they were measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploy.planning.profile import FromProfile
from deploy.planning.subject import goes_by_another_name
from placement.search.build import Serving
from placement.search.candidate import Candidate
from placement.simulator.results import RequestColumns
from placement.workload.workload import Workload


def caveats(
    profile: FromProfile | None,
    serving: Serving,
    candidates: Sequence[Candidate],
    requests: Workload | RequestColumns,
) -> list[str]:
    """A line each. `requests`: those of the simulation, or such as they would be where nothing is simulated."""
    if profile is None:
        return []
    return [*_other_name(profile, serving), *_lacks(profile), *_beyond(profile, serving, candidates, requests)]


def _other_name(profile: FromProfile, serving: Serving) -> list[str]:
    """Step times of a model that is called otherwise, but whose sizes are equal, are taken; not in silence."""
    subject = profile.subject
    if subject is None or not goes_by_another_name(serving.model, subject):
        return []
    known = "weights and KV are" if subject.weight_bytes else "KV is (of its weights the profile says nothing)"
    return [f"step times are of {subject.model}, not of {serving.model.name}: their {known} of the same size"]


def _lacks(profile: FromProfile) -> list[str]:
    if not profile.of_one_device:  # another system's file: of its cluster nothing is known here
        return []
    if profile.subject is None and profile.delays is None:
        return [
            "the profile has step times alone, no delays, so TTFT and TPOT are too low: `pdserve profile MODEL -o F` "
            "measures both"
        ]
    found = [] if profile.complete else ["the profile is not complete: its measuring was stopped, or too short"]
    if profile.delays is None:
        found.append(
            "the profile has no delays, so TTFT and TPOT are too low: `pdserve profile` without --no-delays measures "
            "them"
        )
    return found


def _beyond(
    profile: FromProfile, serving: Serving, candidates: Sequence[Candidate], requests: Workload | RequestColumns
) -> list[str]:
    """What may be larger than anything that was measured, from what to what."""
    reaches = [profile.reach(pool) for candidate in candidates for pool in candidate.pools]
    known = [reach for reach in reaches if reach is not None]
    if not known:
        return []
    chunk = max(candidate.chunk_tokens for candidate in candidates)
    sequences = min(serving.max_num_seqs, chunk)
    if isinstance(requests, RequestColumns):
        sequences = min(sequences, most_at_once(requests))
    context = int((requests.prompt_tokens + requests.output_tokens).max()) - 1  # nothing follows the last token
    sizes = (
        ("steps of up to {:,} tokens", chunk, min(reach.step_tokens for reach in known)),
        ("contexts of up to {:,} tokens", context, min(reach.context_tokens for reach in known)),
        ("up to {:,} sequences in a step", sequences, min(reach.sequences for reach in known)),
    )
    beyond = [
        f"{said.format(value)} (measured up to {measured:,.0f})" for said, value, measured in sizes if value > measured
    ]
    return [f"beyond what was measured the fit is extrapolated: {', '.join(beyond)}"] if beyond else []


def most_at_once(rows: RequestColumns) -> int:
    """Requests that were open at the same time, so no step had more sequences."""
    served = ~np.isnan(rows.e2e_s)
    begins, ends = rows.arrival_s[served], (rows.arrival_s + rows.e2e_s)[served]
    changes = np.concatenate([np.ones(len(begins)), -np.ones(len(ends))])
    order = np.lexsort((changes, np.concatenate([begins, ends])))
    return int(np.cumsum(changes[order]).max(initial=0))
