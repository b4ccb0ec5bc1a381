"""What a router believes of its workers' prefix caches."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.prefix_directory import CHUNK_TOKENS as CHUNK
from scheduling.prefix_directory import PrefixDirectory, chunk_keys, extended_keys

BLOCK = 16


def directory(*pool_chunks: int) -> PrefixDirectory:
    """Workers a, b, ... whose pools hold so many chunks."""
    made = PrefixDirectory()
    for name, chunks in zip("abcdef", pool_chunks, strict=False):
        made.add(name, chunks * CHUNK // BLOCK, BLOCK)
    return made


def prompt(chunks: int, of: int = 7, more: int = 0) -> tuple[int, ...]:
    return tuple((of * 1000 + n) % 5003 for n in range(chunks * CHUNK)) + (of,) * more


def expected(known: PrefixDirectory, tokens: tuple[int, ...], salt: str = "") -> dict[str, int]:
    known.check()
    return known.expected(chunk_keys(tokens, salt), len(tokens))


def test_keys_stand_for_all_tokens_up_to_a_chunks_end_and_for_the_salt() -> None:
    tokens = prompt(3)
    keys = chunk_keys(tokens, "t")
    assert len(keys) == 3 and chunk_keys((*tokens, 1), "t") == keys
    assert chunk_keys((9, *tokens[1:]), "t")[2] != keys[2]
    assert not set(chunk_keys(tokens, "another")) & set(keys)
    assert chunk_keys(tokens[: CHUNK - 1], "t") == []


def test_keys_go_on_from_a_prompts_to_those_of_its_answer() -> None:
    for first in (0, 1, CHUNK - 1, CHUNK, 3 * CHUNK + 5):
        asked, answer = prompt(4)[:first], prompt(3, of=9)
        keys = chunk_keys(asked, "t")
        rest = asked[len(keys) * CHUNK :] + answer
        assert extended_keys(keys, rest, "t") == chunk_keys(asked + answer, "t")
        assert extended_keys(keys, rest[:-1], "t") == chunk_keys((asked + answer)[:-1], "t")


def test_what_was_sent_is_expected_there_and_nowhere_else() -> None:
    known = directory(9, 9, 9)
    known.note("a", chunk_keys(prompt(3), ""))
    known.note("c", chunk_keys(prompt(1), ""))
    assert expected(known, prompt(2, more=5)) == {"a": 2 * CHUNK, "c": CHUNK}
    assert expected(known, prompt(5)) == {"a": 3 * CHUNK, "c": CHUNK}
    assert expected(known, prompt(3, of=8)) == {}
    assert expected(known, prompt(3), salt="another tenant") == {}


def test_the_last_token_is_always_computed_and_only_whole_blocks_are_there() -> None:
    known = directory(9)
    known.note("a", chunk_keys(prompt(2), ""))
    assert expected(known, prompt(2)) == {"a": 2 * CHUNK - BLOCK}
    coarse = PrefixDirectory()
    coarse.add("x", 10, 3 * CHUNK // 2)
    coarse.note("x", chunk_keys(prompt(4), ""))
    assert expected(coarse, prompt(2, more=9)) == {"x": 3 * CHUNK // 2}
    assert expected(coarse, prompt(1, more=9)) == {}


def test_no_more_is_known_than_the_pool_holds_and_ends_of_chains_go_first() -> None:
    known = directory(4)
    known.note("a", chunk_keys(prompt(3, of=1), ""))
    known.note("a", chunk_keys(prompt(3, of=2), ""))
    assert expected(known, prompt(3, of=1, more=1)) == {"a": CHUNK}
    assert expected(known, prompt(3, of=2, more=1)) == {"a": 3 * CHUNK}
    known.note("a", chunk_keys(prompt(1, of=1), ""))  # now the other is the older one
    known.note("a", chunk_keys(prompt(2, of=3), ""))
    assert expected(known, prompt(3, of=1, more=1)) == {"a": CHUNK}
    assert expected(known, prompt(3, of=2, more=1)) == {"a": CHUNK}


def test_what_is_to_come_takes_room_and_is_expected_once_it_is_there() -> None:
    known = directory(4)
    known.note("a", chunk_keys(prompt(3, of=1), ""))
    known.reserve("a", chunk_keys(prompt(2, of=2), ""))
    assert expected(known, prompt(3, of=1, more=1)) == {"a": 2 * CHUNK}
    assert expected(known, prompt(2, of=2, more=1)) == {}
    known.note("a", chunk_keys(prompt(2, of=2), ""))
    known.reserve("a", chunk_keys(prompt(3, of=2), ""))  # of which two are there
    assert expected(known, prompt(3, of=2, more=1)) == {"a": 2 * CHUNK}
    known.reserve("a", chunk_keys(prompt(4, of=3), ""))
    assert expected(known, prompt(2, of=2, more=1)) == {}
    known.remove("a")
    assert not known._masks


def test_a_worker_that_went_is_forgotten_and_one_that_comes_is_empty() -> None:
    known = directory(9, 9)
    for name in "ab":
        known.note(name, chunk_keys(prompt(2), ""))
    known.remove("a")
    known.remove("nobody")
    assert expected(known, prompt(2, more=1)) == {"b": 2 * CHUNK}
    known.add("c", 9 * CHUNK // BLOCK, BLOCK)
    known.note("unknown", chunk_keys(prompt(2), ""))
    assert expected(known, prompt(2, more=1)) == {"b": 2 * CHUNK}
    known.remove("b")
    known.remove("c")
    assert not known and not known._masks


def test_who_had_less_than_was_expected_forgets_its_oldest() -> None:
    known = directory(9)
    known.note("a", chunk_keys(prompt(2, of=1), ""))
    known.note("a", chunk_keys(prompt(2, of=2), ""))
    known.missed("a", CHUNK - 1)
    known.missed("a", -5 * CHUNK)
    assert expected(known, prompt(2, of=1, more=1)) == {"a": 2 * CHUNK}
    known.missed("a", CHUNK)
    assert expected(known, prompt(2, of=1, more=1)) == {"a": CHUNK}
    known.missed("a", 2 * CHUNK)
    assert expected(known, prompt(2, of=1, more=1)) == {}
    assert expected(known, prompt(2, of=2, more=1)) == {"a": CHUNK}
    known.missed("a", 99 * CHUNK)
    assert expected(known, prompt(2, of=2, more=1)) == {}


CALLS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["note", "note", "reserve", "missed", "again"]),
              st.integers(0, 2), st.integers(0, 5)), max_size=40,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(CALLS)
def test_as_a_plain_list_for_each_worker_would_have_it(calls: list[tuple[str, str, int, int]]) -> None:
    """And what a worker has of a chain is its beginning, however often something was forgotten."""
    known, plain = directory(3, 5, 8, 5), {name: OrderedDict[int, bool]() for name in "abcd"}
    most = dict(zip("abcd", (3, 5, 8, 5), strict=True))
    chains = [[100 * chain + n for n in range(6)] for chain in range(2)]
    chains.append([*chains[0][:3], 900, 901, 902])  # two chains with one beginning
    for name, what, chain, count in calls:
        mine = plain[name]
        if what in ("note", "reserve"):
            keys = chains[chain][: min(count, most[name])]
            (known.note if what == "note" else known.reserve)(name, keys)
            for key in reversed(keys):
                mine[key] = mine.pop(key, False) or what == "note"
        elif what == "missed":
            known.missed(name, count * CHUNK)
        else:
            known.remove(name)
            known.add(name, most[name] * CHUNK // BLOCK, BLOCK)
            mine.clear()
        for _ in range(max(len(mine) - most[name], min(count, len(mine)) if what == "missed" else 0)):
            mine.popitem(last=False)
        known.check()
        for keys in chains:
            depths = {}
            for worker, has in plain.items():
                flags = [has.get(key, False) for key in keys]
                depths[worker] = sum(flags)
                assert flags == sorted(flags, reverse=True)
            found = known.expected(keys, 99 * CHUNK)
            assert found == {worker: depth * CHUNK for worker, depth in depths.items() if depth}
