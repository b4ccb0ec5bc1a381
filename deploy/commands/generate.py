"""`pdserve generate PROMPT`: a completion, as it comes."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing

from bench.load.tls_words import grpc_words
from deploy.arguments import above_zero, api_key, whole
from deploy.tls_arguments import add_tls_arguments, refuse_tls, tls_of
from pdserve.client import Client, Completion, GenerateOptions
from pdserve.errors import NotFound, RequestError, ServingError, StatusCode, Unauthenticated
from pdserve.exit import ExitCode, StartError
from pdserve.settings import address_problems
from pdserve.tls import Tls

DEFAULT_SERVER = "127.0.0.1:50051"
_INT32 = (1 << 31) - 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PROMPT, the server, and the sampling parameters."""
    parser.add_argument("prompt", metavar="PROMPT", help="text to continue; - reads standard input")
    server = os.environ.get("PDSERVE_SERVER", DEFAULT_SERVER)
    parser.add_argument(
        "--server", default=server, metavar="ADDR",
        help="gRPC address, HOST:PORT, or with TLS grpcs://HOST:PORT (default: %(default)s)",
    )  # fmt: skip
    add_tls_arguments(parser)
    parser.add_argument("--api-key", type=api_key, default=os.environ.get("PDSERVE_API_KEY"), help="the server's key")
    parser.add_argument(
        "--max-tokens", type=whole(1, _INT32), default=256, metavar="N", help="at most (default: %(default)s)"
    )
    parser.add_argument("--temperature", type=float, metavar="X", help="0 is greedy (default: 0)")
    parser.add_argument("--top-p", type=float, metavar="X", help="nucleus mass (default: 1)")
    parser.add_argument(
        "--top-k", type=whole(-1, _INT32), metavar="N", help="most likely tokens to choose from (default: all)"
    )
    parser.add_argument("--min-p", type=float, metavar="X", help="least probability, relative to the best (default: 0)")
    parser.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1 repeats less (default: 1)")
    parser.add_argument("--seed", type=whole(0), metavar="N", help="the same seed gives the same text")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the text; may be repeated")
    parser.add_argument("--ignore-eos", action="store_true", help="go on past the end of sequence")
    parser.add_argument(
        "--timeout-s", type=above_zero, default=600.0, metavar="S", help="deadline (default: %(default)s)"
    )
    parser.add_argument("--stats", action="store_true", help="then tell on standard error how long it took")


def run(args: argparse.Namespace) -> int:
    """Stream the text to standard output; raises StartError when the server refuses or cannot be reached."""
    address, tls = _server(args)
    options = GenerateOptions(
        max_tokens=args.max_tokens, temperature=args.temperature, top_p=args.top_p, top_k=args.top_k,
        min_p=args.min_p, repetition_penalty=args.repetition_penalty, seed=args.seed, stop=args.stop,
        ignore_eos=args.ignore_eos, timeout_s=args.timeout_s,
    )  # fmt: skip
    try:
        prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
        prompt.encode()  # what was no UTF-8 on the command line stands in it as halves of characters
    except UnicodeError:
        raise StartError("PROMPT is not UTF-8 text", ExitCode.CONFIG) from None
    try:
        completion = _stream(Client(address, api_key=args.api_key, tls=tls), prompt, options)
    except (ServingError, ValueError) as error:
        raise _failure(args.server, error, tls) from None
    if args.stats:
        print(_stats(completion), file=sys.stderr)
    return ExitCode.OK


def _server(args: argparse.Namespace) -> tuple[str, Tls | None]:
    """HOST:PORT, and how TLS is spoken there, if it is. Raises StartError, ConfigError."""
    scheme, _, address = args.server.rpartition("://")
    bad = address_problems("--server", address) if scheme in ("", "grpc", "grpcs") else [
        f"--server is {args.server!r}; it must be HOST:PORT, grpc://HOST:PORT or grpcs://HOST:PORT"
    ]  # fmt: skip
    if bad:
        raise StartError(bad[0], ExitCode.CONFIG)
    if scheme != "grpcs":
        refuse_tls(args, args.server, f"say grpcs://{address}")
        return address, None
    return address, tls_of(args)


def _stream(client: Client, prompt: str, options: GenerateOptions) -> Completion:
    with client, closing(client.stream(prompt, options)) as events:  # type: ignore[type-var]
        for event in events:
            if isinstance(event, Completion):
                print(flush=True)
                return event
            sys.stdout.write(event.text)
            sys.stdout.flush()
    raise StartError("the server ended the stream early")


def _failure(server: str, error: ServingError | ValueError, tls: Tls | None) -> StartError:
    """What the caller did wrong is 2, as for any argument; everything else failed."""
    if isinstance(error, ServingError) and error.status is StatusCode.UNAVAILABLE:
        return StartError(f"--server is {server}; {grpc_words(str(error), tls, 'it cannot serve')}")
    callers_fault = isinstance(error, RequestError | ValueError) and not isinstance(error, NotFound | Unauthenticated)
    return StartError(str(error), ExitCode.CONFIG if callers_fault else ExitCode.FAILED)


def _stats(done: Completion) -> str:
    timing = done.timing
    return (
        f"{done.prompt_tokens} + {len(done.token_ids)} tokens, {done.finish_reason.value}; "
        f"TTFT {timing.ttft_s:.3f} s, TPOT {timing.tpot_s:.4f} s, {timing.prefill_worker} -> {timing.decode_worker}"
    )
