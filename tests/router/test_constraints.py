"""Constraints at the doors: each way to write one reaches the core as it is; a bad or hostile one gets a 400."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import grpc
import pytest

from pdserve.errors import CapacityError
from pdserve.sampling import Constraint, ConstraintKind
from pdserve.v1 import inference_pb2 as pb
from router.validation.constraint import ConstraintTrials

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
JSON = "application/json"
HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}, "required": ["b"]}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))
K = ConstraintKind

ASKED = [
    ({"response_format": {"type": "json_object"}}, Constraint(K.JSON_OBJECT)),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}},
        Constraint(K.JSON_SCHEMA, TEXT),
    ),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, Constraint(K.JSON_OBJECT)),
    ({"response_format": {"type": "text"}}, None),
    ({"structured_outputs": {"json": SCHEMA}}, Constraint(K.JSON_SCHEMA, TEXT)),
    ({"structured_outputs": {"json": TEXT}}, Constraint(K.JSON_SCHEMA, TEXT)),
    ({"structured_outputs": {"regex": "a+b"}}, Constraint(K.REGEX, "a+b")),
    ({"structured_outputs": {"choice": ["x", "ü"]}}, Constraint(K.CHOICE, '["x", "ü"]')),
    ({"structured_outputs": {"grammar": 'root ::= "a"'}}, Constraint(K.GRAMMAR, 'root ::= "a"')),
    ({"structured_outputs": {"json_object": True, "disable_any_whitespace": False}}, Constraint(K.JSON_OBJECT)),
    ({"structured_outputs": {}}, None),
    ({"guided_json": SCHEMA}, Constraint(K.JSON_SCHEMA, TEXT)),
    ({"guided_regex": "[0-9]"}, Constraint(K.REGEX, "[0-9]")),
    ({"guided_choice": ["x", "y"]}, Constraint(K.CHOICE, '["x", "y"]')),
    ({"guided_grammar": 'start: "a"'}, Constraint(K.GRAMMAR, 'start: "a"')),
]


def schema(value):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": value}}}


def nested(levels):
    text = '{"type":"object","properties":{"a":' * levels + '{"type":"integer"}' + "}}" * levels
    return json.loads(text)


def refs(levels):
    """2^levels paths, in a few kilobytes."""
    names = {f"d{i}": {"anyOf": [{"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}}] * 2} for i in range(levels)}
    return {"$defs": {**names, f"d{levels}": {"type": "null"}}, "$ref": "#/$defs/d0"}


REPEATED = "((((a{50}){50}){50}){50})"
PATH = "response_format.json_schema.schema"
RULES = "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(3000)) + '\na3000: "x"'

REFUSED = [
    ("deep", schema(nested(200)), PATH, "deeper than 48 levels"),
    ("huge", schema({"enum": ["v" * 40 + str(i) for i in range(3000)]}), PATH, "limit 65,536"),
    ("wide", schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}}), PATH, ""),
    ("exponential", schema({"allOf": [{"anyOf": [{"enum": [i]}, {"enum": [-i]}]} for i in range(20)]}), PATH, ""),
    ("long chain of references", schema(refs(400)), PATH, ""),
    ("repeated pattern", schema({"type": "string", "pattern": f"^{REPEATED}$"}), PATH, "too long"),
    (
        "repeated pattern, not required",
        schema({"type": "object", "properties": {"z": {"type": "array", "items": {"pattern": f"^{REPEATED}$"}}}}),
        PATH,
        "too long",
    ),
    ("costly multiple", schema({"type": "integer", "multipleOf": 1_000_003}), PATH, "too long"),
    ("itself", schema({"$ref": "#"}), PATH, "no text is possible"),
    ("unsatisfiable", schema({"type": "string", "enum": [1]}), PATH, "Unsatisfiable"),
    ("remote reference", schema({"$ref": "http://example.com/schema.json"}), PATH, "not present"),
    ("unknown type", schema({"type": "foo"}), PATH, "Invalid type"),
    ("unknown format", schema({"type": "string", "format": "zip"}), PATH, "Unknown format"),
    ("schema is a list", schema([]), PATH, "an object"),
    ("schema is no JSON", {"guided_json": "{"}, "guided_json", "not JSON"),
    ("half a surrogate in JSON", {"guided_json": '{"const":"\\ud800"}'}, "guided_json", "not JSON"),
    ("NaN", {"guided_json": '{"minimum":NaN}'}, "guided_json", "not JSON"),
    ("huge number", {"guided_json": '{"maximum":1e999}'}, "guided_json", "not JSON: number out of range"),
    ("surrogate", {"guided_regex": "\ud800"}, "guided_regex", "surrogate"),
    ("regex", {"guided_regex": "(a"}, "guided_regex", "unclosed group"),
    ("look-around", {"guided_regex": "(?=a)b"}, "guided_regex", "look-around"),
    ("repeated regex", {"guided_regex": "(a{1000}){1000}"}, "guided_regex", "too long"),
    ("empty regex", {"guided_regex": ""}, "guided_regex", "empty"),
    ("no choices", {"guided_choice": []}, "guided_choice", "at least one"),
    ("empty choice", {"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice", "not empty"),
    ("grammar", {"guided_grammar": "?? what"}, "guided_grammar", "neither Lark nor GBNF"),
    ("chain of rules", {"guided_grammar": RULES}, "guided_grammar", "too deep"),
    ("type", {"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ("no schema", {"response_format": {"type": "json_schema"}}, "response_format.json_schema", "goes with"),
    ("unknown key", {"response_format": {"type": "text", "x": 1}}, "response_format.x", "not a field"),
    ("two", {"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "give one"),
    ("two in one", {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs", "exactly one"),
    ("ignore_eos", {"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "cannot go with guided_regex"),
    ("min_tokens", {"guided_regex": "a", "min_tokens": 2, "max_tokens": 9}, "min_tokens", "cannot go with"),
    ("tag", {"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "not supported"),
]  # fmt: skip


def test_every_way_to_write_a_constraint_reaches_the_core(open_http, core) -> None:
    """Also beside n, seeds and stop strings; the schema's properties keep their order."""

    async def run() -> None:
        async with open_http() as door:
            for path, body in ((CHAT, {"messages": HELLO}), (COMPLETIONS, {"prompt": "x"})):
                for fields, constraint in ASKED:
                    core.submitted.clear()
                    answer = await door.http.post(path, json=body | fields | {"n": 2, "seed": 1, "stop": "#"})
                    assert answer.status_code == 200, answer.text
                    assert [one.sampling.constraint for one in core.submitted] == [constraint] * 2

    asyncio.run(run())


def test_bad_and_hostile_constraints_get_a_400(open_http, core) -> None:
    """Each names its field, none reaches a worker. The kernel ends a trial after 0.7 s (pdserve/grammar_trial.py)."""

    async def run() -> None:
        async with open_http() as door:
            for name, fields, param, words in REFUSED:
                answer = await door.http.post(
                    COMPLETIONS, content=json.dumps({"prompt": "x"} | fields), headers={"content-type": JSON}
                )
                error = answer.json()["error"]
                assert answer.status_code == 400, f"{name}: {answer.text}"
                assert error["param"] == param, f"{name}: {error}"
                assert words in error["message"] and len(error["message"]) < 400, f"{name}: {error}"
            good = await door.http.post(COMPLETIONS, json={"prompt": "x", "guided_regex": "a"})
            assert good.status_code == 200, good.text
        assert len(core.submitted) == 1

    asyncio.run(run())


def test_a_hostile_constraint_does_not_keep_others_waiting(open_http) -> None:
    """While it is tried, requests without a constraint are answered, and so are constraints that were tried before."""

    async def run() -> None:
        async with open_http() as door:

            async def ask(**fields):
                return (await door.http.post(COMPLETIONS, json={"prompt": "x"} | fields)).status_code

            assert await ask(guided_regex="a") == 200
            hostile = [asyncio.create_task(ask(guided_regex=f"(a{{{n}}}){{1000}}")) for n in (900, 901, 902)]
            await asyncio.sleep(0)
            assert [await ask(), await ask(guided_regex="a")] == [200, 200]
            assert not all(one.done() for one in hostile)
            assert await asyncio.gather(*hostile) == [400] * 3

    asyncio.run(run())


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"json_schema": TEXT}, Constraint(K.JSON_SCHEMA, TEXT)),
        ({"json_object": True}, Constraint(K.JSON_OBJECT)),
        ({"json_object": False}, None),
        ({"regex": "a|b"}, Constraint(K.REGEX, "a|b")),
        ({"grammar": 'start: "x"'}, Constraint(K.GRAMMAR, 'start: "x"')),
        ({"choice": pb.Choices(texts=["a", "b"])}, Constraint(K.CHOICE, '["a", "b"]')),
    ],
)
def test_grpc_constraints_reach_the_core(open_doors, core, fields, constraint) -> None:
    async def run() -> None:
        async with open_doors() as door:
            request = pb.GenerateRequest(text="x", max_tokens=4, **fields)
            async for _ in door.stub.Generate(request):
                pass
        assert [one.sampling.constraint for one in core.submitted] == [constraint]

    asyncio.run(run())


def test_grpc_refuses_by_the_name_of_the_field(open_doors, core) -> None:
    """INVALID_ARGUMENT; an end that cannot come is refused as well."""

    async def refusal(door, **fields) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in door.stub.Generate(pb.GenerateRequest(text="x", max_tokens=4, **fields)):
                pass
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        return str(caught.value.details())

    async def run() -> None:
        async with open_doors() as door:
            assert (await refusal(door, json_schema="[]")).startswith("json_schema must be a JSON object")
            assert (await refusal(door, regex="(a{1000}){1000}")).startswith("regex takes too long")
            assert (await refusal(door, choice=pb.Choices())).startswith("choice must be a list")
            assert (await refusal(door, regex="")).startswith("regex is empty")
            assert (await refusal(door, regex="a", ignore_eos=True)).startswith("ignore_eos cannot go with regex")
        assert not core.submitted

    asyncio.run(run())


@pytest.mark.parametrize("size", [2, 200_000])
def test_a_trial_that_never_answers_is_killed_and_the_next_is_tried(monkeypatch, size) -> None:
    """Stopped before it reads, so that a long constraint does not even fit its pipe."""

    async def run() -> None:
        trials = ConstraintTrials()
        try:
            await trials.check(Constraint(K.REGEX, "a"), "regex")
            (trier,) = trials._idle
            trier.send_signal(signal.SIGSTOP)
            # all its threads: they run on until the one that gets the signal has been given a core
            await asyncio.to_thread(os.waitid, os.P_PID, trier.pid, os.WSTOPPED | os.WNOWAIT)
            monkeypatch.setattr("router.validation.constraint.ANSWER_LIMIT_S", 0.3)
            with pytest.raises(CapacityError, match=r"not tried within 0.3 s"):
                await trials.check(Constraint(K.CHOICE, json.dumps(["v" * size])), "choice")
            assert trier.returncode == -signal.SIGKILL and not trials._idle
            monkeypatch.setattr("router.validation.constraint.ANSWER_LIMIT_S", 10.0)
            await trials.check(Constraint(K.REGEX, "b"), "regex")
        finally:
            trials.close()

    asyncio.run(run())
