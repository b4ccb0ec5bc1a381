"""What the host's sampler costs per row, in milliseconds, beside one numpy exp of the row.

    python -m bench.sampling [--vocab 151936] [--rows 4] [--repeats 30]

Logits are normal with a few tall ones, as a language model's are. CPU time of one thread, the least of the repeats.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.arguments import positive
from engine.sampler import sample
from pdserve.sampling import SamplingParams
from scheduling.step import SampleRequest

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0},
    "+ top_p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "+ top_k 50": {"temperature": 0.8, "top_k": 50},
    "+ top_k 20, top_p 0.8": {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    "+ min_p 0.05": {"temperature": 1.0, "min_p": 0.05},
    "+ penalties": {"temperature": 1.0, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
    "greedy, logprobs 5": {"logprobs": 5},
    "temperature, logprobs 5": {"temperature": 1.0, "logprobs": 5},
}


def least_s(act: Callable[[], object], repeats: int) -> float:
    """CPU seconds of the quickest."""
    seconds = []
    for _ in range(repeats):
        begin = time.thread_time()
        act()
        seconds.append(time.thread_time() - begin)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=positive, default=151_936)
    parser.add_argument("--rows", type=positive, default=4)
    parser.add_argument("--repeats", type=positive, default=30)
    parser.add_argument("--context", type=positive, default=1000, help="tokens so far, which penalties look at")
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    logits = generator.normal(0.0, 2.0, (args.rows, args.vocab))
    logits[:, generator.integers(0, args.vocab, 40)] += np.linspace(4.0, 12.0, 40)
    rows = torch.from_numpy(logits.astype(np.float32))
    tokens = generator.integers(0, args.vocab, args.context).tolist()
    exp_s = least_s(lambda: np.exp(logits[0]), args.repeats)
    print(f"vocabulary {args.vocab:,}, {args.rows} rows, {args.context} tokens; one np.exp: {1e3 * exp_s:.3f} ms")
    for name, params in SETTINGS.items():
        sampling = [SamplingParams(max_tokens=args.context, seed=n, **params) for n in range(args.rows)]
        requests = [SampleRequest(one, tokens, args.context // 2) for one in sampling]
        row_s = least_s(lambda requests=requests: sample(rows, requests), args.repeats) / args.rows  # type: ignore[misc]
        print(f"{name:26} {1e3 * row_s:8.3f} ms per row  x{row_s / exp_s:.1f} of an exp")


if __name__ == "__main__":
    main()
