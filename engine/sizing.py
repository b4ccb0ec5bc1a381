"""How many KV blocks a worker makes."""

from __future__ import annotations

from pdserve.kv_layout import KvLayout

DEFAULT_KV_BYTES = 1 << 30  # on the CPU, at most
DEFAULT_SHARE = 0.25  # and of the memory that is available


def default_kv_bytes() -> int:
    """The CPU's budget when nobody says: 1 GiB, or a quarter of the available memory where that is less."""
    return min(DEFAULT_KV_BYTES, int(_available_bytes() * DEFAULT_SHARE))


def num_kv_blocks(layout: KvLayout, budget_bytes: int, max_model_len: int) -> int:
    """Blocks that fit the budget, with their generation words.

    Raises ValueError when one sequence of max_model_len tokens would not fit.
    """
    count = budget_bytes // (layout.block_bytes + 8)
    needed = -(-max_model_len // layout.block_size)
    if count < needed:
        raise ValueError(
            f"KV memory is {budget_bytes:,} bytes, room for {count:,} blocks of {layout.block_size} tokens; "
            f"{max_model_len:,} tokens need {needed:,} blocks, {needed * (layout.block_bytes + 8):,} bytes"
        )
    return count


def _available_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024
