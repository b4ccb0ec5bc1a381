"""What a made model looks like: its architecture and shape, checked before anything is built."""

from dataclasses import dataclass, fields

from deploy.models.byte_bpe import MIN_TOKENS

ARCHITECTURES = (
    *("llama", "llama3", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3", "opt", "gpt2", "mixtral", "phi"),
    *("phi3", "gpt_neox", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3", "olmo2", "glm4", "granite", "cohere"),
    "stablelm",
)
MIXTURES = frozenset({"mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3"})
ONE_KV_HEAD_PER_HEAD = frozenset({"opt", "gpt2", "gpt_neox", "deepseek_v3"})  # no grouped-query form exists
HEAD_DIM_IS_A_QUOTIENT = frozenset({"opt", "gpt2", "gpt_neox", "phi", "phi3", "olmo2", "stablelm", "qwen2_moe"})
HEAD_DIM_IS_A_QUOTIENT |= {"qwen2", "granite", "cohere"}  # no head_dim of their own: hidden_size / num_heads
SLIDING = frozenset({"mistral", "mixtral", "gemma2", "gemma3", "gpt_oss", "phi3", "qwen2", "qwen3"})
TIED_BY_DEFAULT = frozenset({"gemma", "gemma2", "gemma3", "opt", "gpt2", "cohere"})
STARTS_WITH_BOS = frozenset({"llama", "llama3", "mistral", "mixtral", "gemma", "gemma2", "gemma3", "opt", "cohere"})
STARTS_WITH_BOS |= {"deepseek_v3"}
DTYPES = ("float32", "bfloat16", "float16")


class BadModelSpec(ValueError):
    """A model that cannot be: the message names the argument, its value and what is allowed."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a model; None means: derived from the other fields, see resolved()."""

    arch: str = "llama"  # one of ARCHITECTURES
    num_layers: int = 2  # decoder layers
    hidden_size: int = 64  # width of the residual stream
    intermediate_size: int | None = None  # width inside an MLP (of one expert, in a mixture); about 8/3 of hidden
    num_heads: int | None = None  # query heads; one per 64 of hidden, at least 4
    num_kv_heads: int | None = None  # key-value heads; half the query heads where the architecture groups them
    head_dim: int | None = None  # size of one head; hidden / heads
    vocab_size: int = 2048  # rows of the embedding; the tokenizer has at most as many tokens
    max_position_embeddings: int = 2048  # longest sequence, tokens
    sliding_window: int | None = None  # tokens a sliding layer sees; a quarter of the longest sequence
    num_experts: int | None = None  # experts per layer of a mixture; 8
    experts_per_token: int | None = None  # experts that compute one token; 2
    tie_word_embeddings: bool | None = None  # the output matrix is the embedding; as the architecture usually has it
    dtype: str = "float32"  # one of DTYPES
    seed: int = 0  # decides every weight
    init_std: float | None = None  # standard deviation of the matrices; 2 / sqrt(hidden)

    def resolved(self) -> "ResolvedSpec":
        """The spec with nothing left open; raises BadModelSpec for a model that cannot be."""
        _check_choice("arch", self.arch, ARCHITECTURES)
        _check_choice("dtype", self.dtype, DTYPES)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and field.name != "seed" and value < 1:
                raise BadModelSpec(f"{field.name} is {value}; it must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise BadModelSpec(f"seed is {self.seed}; it must be from 0 to 2**63 - 1")
        if self.vocab_size < MIN_TOKENS:
            raise BadModelSpec(f"vocab_size is {self.vocab_size}; it must be at least {MIN_TOKENS} (bytes and marks)")
        if self.init_std is not None and not 0 < self.init_std < 10:
            raise BadModelSpec(f"init_std is {self.init_std}; it must be above 0 and below 10")
        num_heads = self.num_heads or _default_heads(self.hidden_size)
        tied = self.arch in TIED_BY_DEFAULT if self.tie_word_embeddings is None else self.tie_word_embeddings
        resolved = ResolvedSpec(
            arch=self.arch,
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size or -(-8 * self.hidden_size // 3 // 16) * 16,
            num_heads=num_heads,
            num_kv_heads=self.num_kv_heads or self._default_kv_heads(num_heads),
            head_dim=self.head_dim or self._head_dim(num_heads),
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_position_embeddings,
            sliding_window=self.sliding_window or max(1, self.max_position_embeddings // 4),
            slides=self.sliding_window is not None,
            num_experts=self.num_experts or 8,
            experts_per_token=self.experts_per_token or min(2, self.num_experts or 8),
            tie_word_embeddings=tied,
            dtype=self.dtype,
            seed=self.seed,
            init_std=self.init_std or 2 / self.hidden_size**0.5,
        )
        self._check_fit(resolved)
        return resolved

    def _default_kv_heads(self, num_heads: int) -> int:
        return num_heads if self.arch in ONE_KV_HEAD_PER_HEAD or num_heads % 2 else num_heads // 2

    def _head_dim(self, num_heads: int) -> int:
        if self.hidden_size % num_heads:
            raise BadModelSpec(f"hidden_size is {self.hidden_size}; it must be a multiple of num_heads ({num_heads})")
        return self.hidden_size // num_heads

    def _check_fit(self, spec: "ResolvedSpec") -> None:
        """What no single field can tell."""
        if spec.num_heads % spec.num_kv_heads:
            raise BadModelSpec(f"num_kv_heads is {spec.num_kv_heads}; it must divide num_heads ({spec.num_heads})")
        if spec.arch in ONE_KV_HEAD_PER_HEAD and spec.num_kv_heads != spec.num_heads:
            raise BadModelSpec(
                f"num_kv_heads is {spec.num_kv_heads}; {spec.arch} needs as many as num_heads ({spec.num_heads})"
            )
        if spec.arch in HEAD_DIM_IS_A_QUOTIENT and spec.head_dim * spec.num_heads != spec.hidden_size:
            raise BadModelSpec(
                f"head_dim is {spec.head_dim}; {spec.arch} needs hidden_size / num_heads "
                f"({spec.hidden_size} / {spec.num_heads})"
            )
        if spec.head_dim % 2:
            raise BadModelSpec(f"head_dim is {spec.head_dim}; it must be even (rotary positions turn pairs)")
        if self.sliding_window is not None and spec.arch not in SLIDING:
            raise BadModelSpec(f"sliding_window is {self.sliding_window}; only {_listed(SLIDING)} have one")
        for name in ("num_experts", "experts_per_token"):
            if getattr(self, name) is not None and spec.arch not in MIXTURES:
                raise BadModelSpec(f"{name} is {getattr(self, name)}; only {_listed(MIXTURES)} have experts")
        if spec.experts_per_token > spec.num_experts:
            raise BadModelSpec(
                f"experts_per_token is {spec.experts_per_token}; it must be at most num_experts ({spec.num_experts})"
            )


@dataclass(frozen=True, slots=True)
class ResolvedSpec:
    """A ModelSpec with every field decided and checked; the fields mean the same."""

    arch: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    sliding_window: int
    slides: bool  # a window was asked for; where it is optional, only then are there sliding layers
    num_experts: int
    experts_per_token: int
    tie_word_embeddings: bool
    dtype: str
    seed: int
    init_std: float


def _default_heads(hidden_size: int) -> int:
    return max(4, hidden_size // 64)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadModelSpec(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
