"""What the latency model says of a request at the moment it is placed: what its phases are measured against later."""

from __future__ import annotations

from router.core.fleet import Worker
from router.record import Predicted

LINK_SERIES = "link_bandwidth_bytes_per_second"  # of a decode worker's status


def predict(prefill: Worker | None, decode: Worker, prompt_tokens: int, cached_tokens: int) -> Predicted:
    """By what the workers have measured of themselves, before they are told of the request.

    `cached_tokens` of the prompt are expected to be where it is computed.
    """
    computing = (prefill or decode).load()
    queue_s = prompt_s = None
    if computing.latency.coefficients.known:
        chunk, own_tokens = computing.chunk_tokens, prompt_tokens - cached_tokens
        prompt_s = computing.latency.prefill_s(own_tokens, chunk, cached_tokens)
        ttft_s = computing.latency.predicted_ttft_s(computing.uncomputed_tokens, own_tokens, chunk, cached_tokens)
        queue_s = max(0.0, ttft_s - prompt_s)
    step_s = _decode_step_s(decode, prompt_tokens)
    if prefill is None:
        return Predicted(queue_s, prompt_s, 0.0, 0.0, step_s)
    # the KV of all chunks but the last travels while the next one is computed; then it waits for one step to end
    last_chunk = prompt_tokens % prefill.identity.max_num_batched_tokens or prefill.identity.max_num_batched_tokens
    return Predicted(queue_s, prompt_s, _transfer_s(prefill, decode, last_chunk), step_s, step_s)


def _decode_step_s(decode: Worker, prompt_tokens: int) -> float | None:
    """One step with this sequence and all that the worker was given."""
    load = decode.load()
    if not load.latency.coefficients.known:
        return None
    context = (load.num_blocks - max(0, load.free_blocks)) * load.block_size
    return load.latency.predicted_tpot_s(load.num_sequences + 1, context + prompt_tokens)


def _transfer_s(prefill: Worker, decode: Worker, num_tokens: int) -> float | None:
    if decode.status is None:
        return None
    labels = (("dst", decode.id), ("src", prefill.id))
    for sample in decode.status.samples:
        if sample.name == LINK_SERIES and sample.labels == labels and sample.value > 0.0:
            blocks = -(-num_tokens // decode.identity.block_size)
            return blocks * decode.identity.block_bytes / sample.value
    return None
