"""Constrained output from a live cluster, as OpenAI's client asks for it and as pdserve's own does."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field
from tokenizers import Tokenizer

from pdserve.client import Client, GenerateOptions
from pdserve.errors import RequestError
from pdserve.sampling import Constraint, ConstraintKind, FinishReason, choice_of

pytestmark = pytest.mark.e2e

DEMO = Path(__file__).resolve().parents[2] / "deploy/models/demo"
HELLO: Any = [{"role": "user", "content": "Hello"}]
PLATE = "[A-Z]{2}-[0-9]{3}"


class Weather(BaseModel, extra="forbid"):
    city: Literal["Oslo", "Lima"]
    celsius: int = Field(ge=-60, le=60)
    days: list[Literal["mon", "tue"]] = Field(max_length=2)


TOKENIZER = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
TEXTS = {token: TOKENIZER.decode([token]) for token in range(TOKENIZER.get_vocab_size())}
# The demo model likes white space: JSON allows much of it, and max_tokens would come first.
NO_SPACES = {str(token): -100 for token, text in TEXTS.items() if text and not text.strip()}
QUOTES = {str(token): -100 for token, text in TEXTS.items() if '"' in text}
SCHEMA = {"name": "weather", "schema": Weather.model_json_schema(), "strict": True}


@pytest.fixture(scope="module")
def server(serve_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One prefill and one decode worker; every prompt is handed off."""
    flags = ("--served-model-name", "demo", "--dtype", "float32", "--threads", "1",
             "--local-prefill-max-tokens", "0")  # fmt: skip
    with serve_in(tmp_path_factory.mktemp("structured"), DEMO, *flags) as running:
        yield running
        tries = [pid for pid in Path("/proc").iterdir() if _is_trial(pid, running.process.pid)]
    assert tries, "no constraint was ever tried"
    deadline = time.monotonic() + 5.0
    while any(pid.exists() for pid in tries):
        assert time.monotonic() < deadline, "a trial outlived the server"
        time.sleep(0.05)


def _is_trial(process: Path, parent: int) -> bool:
    try:
        command, stat = process.joinpath("cmdline").read_bytes(), process.joinpath("stat").read_text()
    except (OSError, ValueError):
        return False
    return b"pdserve.grammar_trial" in command and int(stat.rpartition(")")[2].split()[1]) == parent


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{server.ready['http']}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_pydantic_model_is_parsed_from_the_answer(client: openai.OpenAI) -> None:
    """`parse` sends the model's schema and reads the answer with it."""
    answer = client.chat.completions.parse(
        model="demo", messages=HELLO, response_format=Weather, max_tokens=100, logit_bias=NO_SPACES
    )
    weather = answer.choices[0].message.parsed
    assert isinstance(weather, Weather) and answer.choices[0].finish_reason == "stop"


def test_choices_streams_and_logprobs_under_a_schema(client: openai.OpenAI) -> None:
    """n seeded choices, whole and streamed, are the same valid texts; log-probabilities are the model's own."""
    asked: Any = {
        "model": "demo", "messages": HELLO, "max_tokens": 100, "temperature": 1.0, "seed": 5, "n": 3,
        "logit_bias": NO_SPACES,
        "response_format": {"type": "json_schema", "json_schema": SCHEMA},
    }  # fmt: skip
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    for choice in whole.choices:
        Weather.model_validate_json(choice.message.content or "")
        assert choice.logprobs is not None and choice.logprobs.content
        assert all(-1e4 < one.logprob <= 0 for one in choice.logprobs.content)
    assert any(one.logprob < one.top_logprobs[1].logprob for c in whole.choices for one in c.logprobs.content)  # type: ignore[union-attr]


def test_vllms_fields_on_completions(client: openai.OpenAI) -> None:
    """regex, choice, any object; a stop string still ends the text early."""

    def ask(**fields: Any) -> str:
        made = client.completions.create(model="demo", prompt="x = ", max_tokens=200, extra_body=fields)
        return made.choices[0].text

    assert re.fullmatch(PLATE, ask(structured_outputs={"regex": PLATE}))
    assert ask(guided_choice=["yes", "no"]) in ("yes", "no")
    assert re.fullmatch(r"[A-Z]{2}", ask(guided_regex=PLATE, stop=["-"]))
    any_object = {"response_format": {"type": "json_object"}, "logit_bias": NO_SPACES | QUOTES}
    assert json.loads(ask(**any_object)) == {}


def test_grpc_and_the_verdict_on_a_hostile_one(server: Any) -> None:
    with Client(server.ready["grpc"]) as client:
        plate = client.generate("x = ", GenerateOptions(constraint=Constraint(ConstraintKind.REGEX, PLATE)))
        assert re.fullmatch(PLATE, plate.text) and plate.finish_reason is FinishReason.STOP
        assert plate.timing.prefill_worker != plate.timing.decode_worker
        again = client.generate("x = ", GenerateOptions(constraint=Constraint(ConstraintKind.REGEX, PLATE)))
        assert again.token_ids == plate.token_ids
        assert client.generate("x", GenerateOptions(constraint=choice_of(["a b", "c"]))).text in ("a b", "c")
        with pytest.raises(RequestError, match="regex takes too long"):
            client.generate("x", GenerateOptions(constraint=Constraint(ConstraintKind.REGEX, "(a{1000}){1000}")))
        assert client.generate("x", GenerateOptions(constraint=choice_of(["d"]))).text == "d"  # another trial
    server.wait_all_blocks_free()
