"""Whether a model directory can be served, told before torch is loaded or any port opens.

Looks at what the checkpoint says of itself: config.json, the safetensors headers, the index and the tokenizer. Nothing
of it is executed, and no weight is read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.kv_size import kv_elements
from deploy.safetensors_headers import BadCheckpoint, TensorEntry, read_header, read_json
from deploy.tokenizer_probe import probe

log = logging.getLogger(__name__)

MAX_CONFIG_BYTES = 8_000_000
MAX_INDEX_BYTES = 64_000_000
MAX_TOKENIZER_BYTES = 128_000_000
MAX_VOCAB = 4_000_000
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")

# What architectures call the same thing; the first name found counts. Each must be a whole number from 1.
_SIZES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "num_key_value_heads": ("num_key_value_heads",),
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len"),
    "head_dim": ("head_dim",),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim"),
}
_LIMITS = {"num_hidden_layers": 2_000, "vocab_size": MAX_VOCAB, "max_position_embeddings": 1 << 30}
_MAX_SIZE = 1 << 22


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a model directory holds."""

    path: Path
    architecture: str  # class name in transformers
    vocab_size: int  # embedding rows
    max_position: int | None  # longest context in tokens; None: the model sets no limit
    num_parameters: int
    weight_bytes: int  # as stored
    stored_dtype: str  # of most weights: "float32", "bfloat16", "float16" or the format's name
    kv_elements: int | None  # numbers of KV that a token has; None: its weights do not tell


def check_checkpoint(path: Path) -> Checkpoint:
    """Look at a whole model directory; raises BadCheckpoint naming the file and the reason."""
    if not path.is_dir():
        raise BadCheckpoint(f"{path}: is {'not a directory' if path.exists() else 'missing'}")
    config = read_json(path / "config.json", MAX_CONFIG_BYTES)
    sizes = _check_config(path / "config.json", config)
    tensors = _weights(path)
    rows = _check_embedding(path, sizes["vocab_size"], tensors)
    _warn_of_code(path, config)
    _check_tokenizer(path, rows)
    by_dtype: dict[str, int] = {}
    for entry in tensors.values():
        by_dtype[entry.dtype] = by_dtype.get(entry.dtype, 0) + entry.num_bytes
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    most = max(by_dtype, key=lambda name: by_dtype[name])
    return Checkpoint(
        path=path,
        architecture=config["architectures"][0],
        vocab_size=rows,
        max_position=sizes.get("max_position_embeddings"),
        num_parameters=sum(_elements(entry) for entry in tensors.values()),
        weight_bytes=sum(by_dtype.values()),
        stored_dtype=names.get(most, most),
        kv_elements=kv_elements(config.get("text_config", config), sizes, tensors),
    )


def _elements(entry: TensorEntry) -> int:
    count = 1
    for size in entry.shape:
        count *= size
    return count


def _check_config(file: Path, config: Any) -> dict[str, int]:
    """The sizes of the text model; raises BadCheckpoint for what no model can have."""
    if not isinstance(config, dict):
        raise BadCheckpoint(f"{file}: is not a JSON object")
    names = config.get("architectures")
    if not (isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)):
        raise BadCheckpoint(f"{file}: architectures is {_shown(names)}; it must be a list with a class name")
    if not isinstance(config.get("model_type"), str):
        raise BadCheckpoint(f"{file}: model_type is {_shown(config.get('model_type'))}; it must be text")
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        raise BadCheckpoint(f"{file}: text_config is {_shown(text)}; it must be an object")
    sizes = {}
    for name, spellings in _SIZES.items():
        spelling = next((one for one in spellings if text.get(one) is not None), None)
        if spelling is None:
            continue
        value, most = text[spelling], _LIMITS.get(name, _MAX_SIZE)
        if type(value) is not int or not 1 <= value <= most:
            raise BadCheckpoint(f"{file}: {spelling} is {_shown(value)}; it must be a whole number from 1 to {most}")
        sizes[name] = value
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if name not in sizes:
            raise BadCheckpoint(f"{file}: {name} is missing")
    _check_heads(file, sizes)
    return sizes


def _check_heads(file: Path, sizes: dict[str, int]) -> None:
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    if "head_dim" not in sizes and hidden % heads:
        raise BadCheckpoint(f"{file}: hidden_size is {hidden}; it must be a multiple of num_attention_heads, {heads}")
    kv_heads = sizes.get("num_key_value_heads", heads)
    if heads % kv_heads:
        raise BadCheckpoint(f"{file}: num_key_value_heads is {kv_heads}; it must divide num_attention_heads, {heads}")


def _weights(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint, from one file or from the shards that the index names."""
    index = path / INDEX
    if (path / WEIGHTS).is_symlink() or (path / WEIGHTS).exists():
        tensors = read_header(_inside(path, path / WEIGHTS, WEIGHTS))
    elif index.exists():
        tensors = _shards(path, index)
    else:
        others = sorted(one.name for one in path.iterdir() if one.suffix in {".bin", ".pt", ".pth", ".ckpt", ".h5"})
        found = f"found only {', '.join(others[:3])}; " if others else ""
        raise BadCheckpoint(f"{path}: {found}{WEIGHTS} or {INDEX} is missing; weights are read from safetensors only")
    if not tensors:
        raise BadCheckpoint(f"{path}: the safetensors files hold no tensor")
    return tensors


def _shards(path: Path, index: Path) -> dict[str, TensorEntry]:
    data = read_json(_inside(path, index, INDEX), MAX_INDEX_BYTES)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(one, str) for one in weight_map.values()):
        raise BadCheckpoint(f"{index}: weight_map must map tensor names to file names")
    tensors: dict[str, TensorEntry] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or name in {"", ".", ".."} or "\0" in name or "\\" in name:
            raise BadCheckpoint(
                f"{index}: names the file {name[:200]!r}; it must be a plain name in the same directory"
            )
        if not name.endswith(".safetensors"):
            raise BadCheckpoint(f"{index}: names the file {name[:200]!r}; weights are read from safetensors only")
        header = read_header(_inside(path, path / name, f"{INDEX} names {name}"))
        twice = sorted(set(header) & set(tensors))
        if twice:
            raise BadCheckpoint(f"{path / name}: tensor {twice[0]!r} is in another shard too")
        lost = next((tensor for tensor, at in weight_map.items() if at == name and tensor not in header), None)
        if lost is not None:
            raise BadCheckpoint(f"{index}: tensor {lost!r} is not in {name}")
        tensors |= header
    return tensors


def _inside(root: Path, file: Path, what: str) -> Path:
    """`file`, which must exist and lie in the model directory (in the hub's cache: in the model's folder of it)."""
    allowed = root.resolve()
    if allowed.parent.name == "snapshots" and allowed.parent.parent.name.startswith("models--"):
        allowed = allowed.parent.parent
    if not file.exists():
        raise BadCheckpoint(f"{file}: is missing ({what})")
    target = file.resolve()
    if not target.is_relative_to(allowed):
        raise BadCheckpoint(f"{file}: leads out of the model directory, to {target}")
    if not target.is_file():
        raise BadCheckpoint(f"{file}: is not a regular file")
    return file


def _check_embedding(path: Path, vocab_size: int, tensors: dict[str, TensorEntry]) -> int:
    """Rows of the token embedding, which config.json must agree with."""
    found = [(name, entry) for name, entry in tensors.items() if name.endswith(_EMBEDDINGS) and len(entry.shape) == 2]
    text = [one for one in found if "vision" not in one[0]]
    if text:
        name, entry = min(text, key=lambda one: len(one[0]))
        if entry.shape[0] != vocab_size:
            raise BadCheckpoint(
                f"{path / 'config.json'}: vocab_size is {vocab_size}; tensor {name!r} has {entry.shape[0]} rows"
            )
    return vocab_size


def _warn_of_code(path: Path, config: dict[str, Any]) -> None:
    """Code that comes with a checkpoint is never run; say so, since the author meant it to be."""
    if "auto_map" in config:
        log.warning("%s: auto_map is ignored, the architecture of transformers is used instead", path / "config.json")
    code = sorted(one.name for one in path.glob("*.py"))
    if code:
        log.warning("%s: Python files are ignored: %s", path, ", ".join(code[:5]))


def _check_tokenizer(path: Path, rows: int) -> None:
    """Every id that text can become has a row in the embedding."""
    file = path / "tokenizer.json"
    if not file.exists():
        if not any((path / name).exists() for name in ("tokenizer.model", "vocab.json", "vocab.txt")):
            raise BadCheckpoint(f"{file}: is missing, and no other tokenizer is there")
        return
    data = read_json(_inside(path, file, "tokenizer"), MAX_TOKENIZER_BYTES)
    model = data.get("model") if isinstance(data, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    added = data.get("added_tokens") or [] if isinstance(data, dict) else []
    if not isinstance(vocab, dict | list) or not isinstance(added, list):
        raise BadCheckpoint(f"{file}: has no model.vocab")
    ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
    ids += [one.get("id") if isinstance(one, dict) else None for one in added]
    if len(ids) > MAX_VOCAB or not all(type(one) is int and one >= 0 for one in ids):
        raise BadCheckpoint(f"{file}: token ids must be at most {MAX_VOCAB:,} whole numbers from 0")
    if ids and max(ids) >= rows:
        raise BadCheckpoint(f"{file}: has the token id {max(ids)}; the embedding has {rows} rows")
    merges = model.get("merges") if isinstance(model, dict) else None
    if merges is not None and (not isinstance(merges, list) or len(merges) > MAX_VOCAB):
        raise BadCheckpoint(f"{file}: merges must be a list of at most {MAX_VOCAB:,}")
    problem = probe(file)
    if problem is not None:
        raise BadCheckpoint(f"{file}: {problem}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
