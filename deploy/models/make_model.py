"""`pdserve make-model DIR`: a Hugging Face model directory with random weights, of any supported architecture.

    python -m deploy.models.make_model DIR --arch qwen3 --layers 4 --hidden 256

For tests and measurements where the shape matters and the text does not. Greedy output wanders over many tokens, so
that two runs which agree have proved something.
"""

import argparse
import sys
from pathlib import Path

from deploy.machine import available_bytes
from deploy.models.model_spec import ARCHITECTURES, DTYPES, MIXTURES, BadModelSpec, ModelSpec, ResolvedSpec

BAD_ARGUMENTS, TOO_LARGE, OUTPUT_FAILED = 2, 3, 6  # exit codes
LEARNED_POSITIONS = frozenset({"gpt2", "opt"})
FLAGS = {
    "num_layers": "--layers", "hidden_size": "--hidden", "intermediate_size": "--intermediate", "num_heads": "--heads",
    "num_kv_heads": "--kv-heads", "vocab_size": "--vocab", "max_position_embeddings": "--max-len",
    "num_experts": "--experts",
}  # fmt: skip
"""Of ModelSpec's fields, those whose flag has another name."""
WRITTEN = ("*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer.json", "chat_template.jinja")


def make_model(directory: Path, spec: ModelSpec) -> None:
    """Write the model that spec describes to directory, made if missing; the same spec gives the same bytes.

    Raises BadModelSpec before anything is written.
    """
    resolved = spec.resolved()
    # Here, not at the top: torch and transformers take seconds, and the command line is parsed without them.
    from deploy.models.checkpoint import write_checkpoint

    directory.mkdir(parents=True, exist_ok=True)
    for pattern in WRITTEN:  # what an earlier model left would be read as part of this one
        for stale in directory.glob(pattern):
            stale.unlink()
    write_checkpoint(directory, resolved)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; the destinations are ModelSpec's field names."""
    spec = ModelSpec()
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to write; must be empty, or --force")
    # No choices=: ModelSpec checks, with the same message however it was made.
    parser.add_argument("--arch", default=spec.arch, help=f"{', '.join(ARCHITECTURES)} (default: %(default)s)")

    def size(flag: str, field: str, help_text: str) -> None:
        default = getattr(spec, field)
        shown = "" if default is None else " (default: %(default)s)"
        parser.add_argument(flag, dest=field, type=int, default=default, metavar="N", help=help_text + shown)

    size("--layers", "num_layers", "decoder layers")
    size("--hidden", "hidden_size", "width of the residual stream")
    size("--intermediate", "intermediate_size", "width inside an MLP or an expert (default: 8/3 of hidden)")
    size("--heads", "num_heads", "query heads (default: one per 64 of hidden, at least 4)")
    size("--kv-heads", "num_kv_heads", "key-value heads (default: half the heads where they may be grouped)")
    size("--head-dim", "head_dim", "size of one head (default: hidden / heads)")
    size("--vocab", "vocab_size", "embedding rows; the tokenizer has at most 4096 tokens")
    size("--max-len", "max_position_embeddings", "longest sequence in tokens")
    size("--sliding-window", "sliding_window", "tokens that a sliding layer sees (default: max-len / 4)")
    size("--experts", "num_experts", "experts per layer of a mixture (default: 8)")
    size("--experts-per-token", "experts_per_token", "experts that compute one token (default: 2)")
    size("--seed", "seed", "decides every weight")
    parser.add_argument(
        "--tie-word-embeddings",
        action=argparse.BooleanOptionalAction,
        help="whether the output matrix is the embedding (default: as the architecture has it)",
    )
    parser.add_argument("--dtype", default=spec.dtype, help=f"{', '.join(DTYPES)} (default: %(default)s)")
    parser.add_argument("--init-std", type=float, metavar="X", help="spread of the matrices (default: 2/sqrt(hidden))")
    parser.add_argument("--force", action="store_true", help="replace the model in a directory that is not empty")


def main(args: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit code."""
    given = vars(args)
    spec = ModelSpec(**{name: given[name] for name in ModelSpec.__dataclass_fields__})
    directory: Path = args.directory
    try:
        needed, free = 4 * _num_weights(spec.resolved()), available_bytes()
        if needed > free:
            return _fail(
                f"the model has {needed:,} bytes of float32 weights, {free:,} bytes of memory are available: lower "
                "--hidden, --layers, --vocab, --max-len, --intermediate or --experts", TOO_LARGE,
            )  # fmt: skip
        if directory.exists() and not directory.is_dir():
            return _fail(f"DIR is {directory}; it must be a directory, and it is a file", OUTPUT_FAILED)
        if directory.is_dir() and any(directory.iterdir()) and not args.force:
            return _fail(f"DIR is {directory}; it must be empty, or say --force", OUTPUT_FAILED)
        make_model(directory, spec)
    except BadModelSpec as error:
        field = str(error).split(" ", 1)[0]
        return _fail(f"{FLAGS.get(field, '--' + field.replace('_', '-'))}: {error}", BAD_ARGUMENTS)
    except OSError as error:
        return _fail(f"DIR is {directory}; it must be writable: {error}", OUTPUT_FAILED)
    num_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    print(f"{directory}: {spec.arch}, {num_bytes / 1e6:,.1f} MB of {spec.dtype} weights")
    return 0


def _num_weights(spec: ResolvedSpec) -> int:
    """Of the matrices, about."""
    attention = 2 * spec.hidden_size * spec.head_dim * (spec.num_heads + spec.num_kv_heads)
    experts = spec.num_experts if spec.arch in MIXTURES else 1
    layer = attention + 3 * spec.hidden_size * spec.intermediate_size * experts
    positions = spec.max_position_embeddings if spec.arch in LEARNED_POSITIONS else 0
    return spec.num_layers * layer + (2 * spec.vocab_size + positions) * spec.hidden_size


def _fail(message: str, code: int) -> int:
    print(f"pdserve make-model: error: {message}", file=sys.stderr)  # as every command's (deploy.cli.fail)
    return code


if __name__ == "__main__":
    command_line = argparse.ArgumentParser(prog="make-model", description=__doc__.splitlines()[0])
    add_arguments(command_line)
    sys.exit(main(command_line.parse_args()))
