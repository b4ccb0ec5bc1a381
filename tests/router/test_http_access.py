"""Who may ask, for whom, from which pages, and under which id."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from deploy.config_file import read_config_file
from deploy.flags import known_settings, serve_config
from deploy.front_doors import front_config
from router.http_front import build_app
from router.text import TOOL_CALL_PARSERS

COMPLETIONS = "/v1/completions"


def call(open_desk, method, path, headers=None, body=None, **config):
    async def run():
        desk = open_desk(**config)
        try:
            transport = httpx.ASGITransport(app=build_app(desk))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, headers=headers, json=body)
        finally:
            desk.close()

    return asyncio.run(run())


def ask(open_desk, headers, body=None, **config):
    return call(open_desk, "POST", COMPLETIONS, headers, {"prompt": "x", **(body or {})}, **config)


KEYS = {"anyone": "", "for-acme": "acme"}


@pytest.mark.parametrize(
    ("key", "tenant", "status", "served"),
    [
        ("anyone", None, 200, "default"),
        ("anyone", "beta", 200, "beta"),
        ("for-acme", None, 200, "acme"),
        ("for-acme", "acme", 200, "acme"),
        ("for-acme", "beta", 403, None),
        ("for-acm", None, 401, None),
    ],
)
def test_a_key_may_speak_for_one_tenant_only(core, open_desk, key, tenant, status, served):
    headers = {"authorization": f"Bearer {key}"} | ({"x-pdserve-tenant": tenant} if tenant else {})
    response = ask(open_desk, headers, api_keys=KEYS)
    assert response.status_code == status
    assert [request.tenant for request in core.submitted] == ([served] if served else [])
    if status == 403:
        assert response.json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize("path", ["/metrics", "/metrics/targets"])
def test_metrics_are_not_for_a_tenants_key(open_desk, path):
    """They name the other tenants, and where the workers are."""
    statuses = []
    for key in ("anyone", "for-acme", "no"):
        response = call(open_desk, "GET", path, {"authorization": f"Bearer {key}"}, api_keys=KEYS)
        statuses.append(response.status_code)
    assert statuses == [200, 403, 401] and call(open_desk, "GET", path).status_code == 200


def test_the_file_says_whose_a_key_is_and_the_flags_add_more(tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text("model: m\ntenant-keys: {acme: [k1, k2]}\n")
    config = serve_config({"api_key": ["open"], "tool_call_parser": "hermes"}, file).router
    front = front_config(config)
    assert front.api_keys == {"open": "", "k1": "acme", "k2": "acme"} and front.tool_call_parser == "hermes"
    assert read_config_file(file, known_settings())["tenant_keys"][0].tenant == "acme"


def test_every_tool_call_parser_can_be_asked_for_by_flag():
    for name in TOOL_CALL_PARSERS:
        assert serve_config({"model": "m", "tool_call_parser": name}).router.tool_call_parser == name


def test_every_answer_has_an_id_the_clients_own_where_it_sent_one(core, open_desk):
    given = ask(open_desk, {"x-request-id": "mine/1"})
    assert given.headers["x-request-id"] == "mine/1"
    assert core.submitted[-1].request_id.startswith("mine_1-")  # the same may come again while it runs
    made = ask(open_desk, {})
    assert made.headers["x-request-id"] == core.submitted[-1].request_id
    assert made.json()["id"] == "cmpl-" + core.submitted[-1].request_id
    in_body = ask(open_desk, {}, {"request_id": "body"})
    assert in_body.headers["x-request-id"] == core.submitted[-1].request_id == "body"
    for headers in ({"x-request-id": "a" * 129}, {"x-request-id": b"\xff"}, {}):
        shown = call(open_desk, "GET", "/nothing", headers).headers["x-request-id"]
        assert shown.startswith("req-")


def test_browsers_are_refused_unless_their_page_is_allowed(open_desk):
    page = {"origin": "https://a.example", "access-control-request-method": "POST"}
    closed = call(open_desk, "OPTIONS", COMPLETIONS, page)
    assert closed.status_code == 405 and "access-control-allow-origin" not in closed.headers
    config = {"allowed_origins": ("https://a.example",), "api_keys": KEYS}
    asked = call(open_desk, "OPTIONS", COMPLETIONS, page, **config)  # before any key is shown
    assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == "https://a.example"
    answer = ask(open_desk, {"origin": "https://a.example", "authorization": "Bearer anyone"}, **config)
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    other = call(open_desk, "OPTIONS", COMPLETIONS, {**page, "origin": "https://b.example"}, **config)
    assert "access-control-allow-origin" not in other.headers
