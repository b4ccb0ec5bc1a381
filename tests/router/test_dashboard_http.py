"""The dashboard over HTTP: the page and its policy, the state, the stream, and who may see them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request

from pdserve.clock import ManualClock, MonotonicClock
from pdserve.slo import Slo
from router.dashboard import Activity, LiveView, WorkerState
from router.dashboard.broadcast import MAX_WATCHERS, Broadcast, every
from router.dashboard.page import build_page
from router.dashboard.routes import Dashboard
from router.generation import FrontDesk
from router.http_front import build_app, serve_http


class Cluster:
    """One worker that idles."""

    def workers(self) -> list[WorkerState]:
        return [WorkerState("decode-0", "decode", "cpu", True)]

    def activity(self) -> Activity:
        return Activity(0, 0)

    def is_ready(self) -> bool:
        return True


@dataclass
class Served:
    """The dashboard behind the real door."""

    dashboard: Dashboard
    http: httpx.AsyncClient


@pytest.fixture
def open_dashboard(open_desk: Callable[..., FrontDesk]) -> Callable[..., object]:
    """An async context manager: the HTTP door with a dashboard, on a free port."""

    @asynccontextmanager
    async def door(**config: object) -> AsyncIterator[Served]:
        desk, clock = open_desk(**config), MonotonicClock()
        dashboard = Dashboard(LiveView({"default": Slo()}, "tiny", clock), Cluster(), clock)
        dashboard.start()
        front = await serve_http(build_app(desk, dashboard.routes), "127.0.0.1", 0)
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.port}", timeout=10) as client:
                yield Served(dashboard, client)
        finally:
            await dashboard.close()
            await front.stop(1)
            desk.close()

    return door


async def events_of(http: httpx.AsyncClient, count: int, **options: object) -> list[tuple[str, dict]]:
    """The first events of the stream."""
    found = []
    async with http.stream("GET", "/dashboard/events", **options) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        kind = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                found.append((kind, json.loads(line[6:])))
                if len(found) == count:
                    return found
    raise AssertionError("the stream ended")


async def kind_of_answer(http: httpx.AsyncClient) -> int:
    """The status of one more watcher, who leaves at once."""
    async with http.stream("GET", "/dashboard/events") as answer:
        return answer.status_code


def test_the_page_loads_nothing_else_and_only_its_own_script_runs(open_dashboard):
    """Style and script stand in it, under the hashes that its policy names."""

    async def run():
        async with open_dashboard() as served:
            answer = await served.http.get("/dashboard")
            again = await served.http.get("/dashboard", headers={"if-none-match": answer.headers["etag"]})
            return answer, again.status_code

    answer, again = asyncio.run(run())
    policy, html = answer.headers["content-security-policy"], answer.text
    assert answer.status_code == 200 and again == 304
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src 'self'" in policy
    for element, directive in (("script", "script-src"), ("style", "style-src")):
        (body,) = re.findall(rf"<{element}[^>]*>(.*?)</{element}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    markup = re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL)
    (style,) = re.findall("<style>(.*?)</style>", html, re.DOTALL)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|\bon[a-z]+=|\bstyle=""", markup)
    assert "url(" not in style and "@import" not in style


def test_the_state_has_an_etag_and_is_one_for_a_second(open_dashboard):
    """A second question within the second has nothing new."""

    async def run():
        async with open_dashboard() as served:
            first = await served.http.get("/dashboard/state")
            again = await served.http.get("/dashboard/state", headers={"if-none-match": first.headers["etag"]})
            return first, again

    first, again = asyncio.run(run())
    assert first.json()["cluster"]["model"] == "tiny" and first.json()["workers"][0]["id"] == "decode-0"
    assert first.headers["cache-control"] == "no-cache" and "access-control-allow-origin" not in first.headers
    assert again.status_code == 304 and again.content == b""


def test_the_stream_begins_whole_and_goes_on_with_changes(open_dashboard):
    """The first event has every section, the next one only what changed."""

    async def run():
        async with open_dashboard() as served:
            return await events_of(served.http, 2)

    (kind, whole), (next_kind, change) = asyncio.run(run())
    assert (kind, next_kind) == ("state", "change")
    assert {"cluster", "classes", "spans", "history", "workers", "links", "misses", "recent"} <= set(whole)
    assert change["version"] == whole["version"] + 1
    assert "time" in change and "points" in change and not {"cluster", "classes", "history"} & set(change)


def test_the_page_needs_no_key_and_the_data_does(open_dashboard):
    """401 without a key or with a wrong one, 403 with a key that speaks for one tenant."""

    async def run():
        async with open_dashboard(api_keys={"right": "", "acme": "acme"}) as served:
            page = await served.http.get("/dashboard")
            found = []
            for path in ("/dashboard/state", "/dashboard/events", "/dashboard/planning"):
                for key in ("", "Bearer wrong", "Bearer acme"):
                    headers = {"authorization": key} if key else {}
                    found.append((await served.http.get(path, headers=headers)).status_code)
            right = {"authorization": "Bearer right"}
            (event,) = await events_of(served.http, 1, headers=right)
            return page, found, (await served.http.get("/dashboard/state", headers=right)).status_code, event

    page, found, right, event = asyncio.run(run())
    assert page.status_code == 200 and "right" not in re.findall(r"\bkey=\w+", page.text)
    assert found == [401, 401, 403] * 3 and right == 200 and event[0] == "state"


def test_watchers_are_bounded_and_leave_their_place(open_dashboard):
    """One too many is told to poll; when one leaves another may come."""

    async def run():
        async with open_dashboard() as served, asyncio.TaskGroup() as tasks:
            come = asyncio.Semaphore(0)

            async def watch():
                async with served.http.stream("GET", "/dashboard/events") as answer:
                    await anext(answer.aiter_lines())
                    come.release()
                    await asyncio.Event().wait()

            watchers = [tasks.create_task(watch()) for _ in range(MAX_WATCHERS)]
            for _ in watchers:
                await come.acquire()
            full = await served.http.get("/dashboard/events")
            state = await served.http.get("/dashboard/state")
            watchers[0].cancel()
            async with asyncio.timeout(5):
                while await kind_of_answer(served.http) != 200:
                    pass
            for watcher in watchers:
                watcher.cancel()
            return full, state.status_code

    full, state = asyncio.run(run())
    assert full.status_code == 503 and full.headers["retry-after"] == "5" and state == 200


def test_a_watcher_that_reads_nothing_loses_its_place(monkeypatch):
    """Nobody waits for it without an end."""
    monkeypatch.setattr("router.dashboard.routes.MAX_UNREAD_S", 0.05)

    async def run():
        clock = MonotonicClock()
        dashboard = Dashboard(LiveView({"default": Slo()}, "tiny", clock), Cluster(), clock)
        answer = await dashboard.routes[2].endpoint(Request({"type": "http", "headers": [], "state": {}}))
        stuck = asyncio.Event()

        async def send(message):
            if message["type"] == "http.response.body":
                stuck.set()
                await asyncio.Event().wait()

        async with asyncio.timeout(5):
            serving = asyncio.create_task(answer({"type": "http"}, asyncio.Event().wait, send))
            await stuck.wait()
            assert dashboard.watchers == 1
            await serving
        assert dashboard.watchers == 0
        await dashboard.close()

    asyncio.run(run())


def test_many_who_come_together_do_not_get_past_the_bound():
    """Also those that were let in while there was room."""

    async def run():
        broadcast = Broadcast(lambda: {"history": {"points": []}, "misses": [], "recent": []}, ManualClock())
        assert not broadcast.is_full
        crowd = [broadcast.watch() for _ in range(MAX_WATCHERS + 3)]
        began = [await anext(one, None) for one in crowd]
        broadcast.close()
        return began, broadcast.watchers

    began, watchers = asyncio.run(run())
    assert watchers == MAX_WATCHERS and began[MAX_WATCHERS:] == [None] * 3 and None not in began[:MAX_WATCHERS]


def test_a_look_that_fails_is_not_the_last(caplog):
    """The same failure is logged once; closing is quiet."""
    looks = []

    async def run():
        done = asyncio.Event()

        def act():
            looks.append(len(looks))
            if len(looks) in (1, 2):
                raise ValueError("no")
            done.set()

        task = asyncio.create_task(every(0.0, act))
        async with asyncio.timeout(5):
            await done.wait()
        task.cancel()

    asyncio.run(run())
    assert len(looks) >= 3 and len(caplog.records) == 1


def test_closing_ends_the_streams(open_dashboard):
    """A server that stops does not wait for those who watch."""

    async def run():
        async with (
            open_dashboard() as served,
            served.http.stream("GET", "/dashboard/events") as answer,
        ):
            lines = answer.aiter_lines()
            await anext(lines)
            await served.dashboard.close()
            async with asyncio.timeout(5):
                return [line async for line in lines]

    assert len([line for line in asyncio.run(run()) if line.startswith("event")]) == 0


def test_one_snapshot_serves_all_watchers_and_a_slow_one_gets_the_whole():
    """However many watch, a snapshot is taken once for each version; one who missed a version starts again."""
    taken = []

    def snapshot():
        taken.append(len(taken))
        points, ended = [[number, None] for number in taken], [{"n": number + 1} for number in taken[::-1]]
        return {"history": {"points": points}, "misses": ended, "recent": [], "same": 1, "number": taken[-1]}

    async def run():
        broadcast = Broadcast(snapshot, ManualClock())
        quick, slow = broadcast.watch(), broadcast.watch()
        first = [await anext(quick), await anext(slow)]
        broadcast.refresh()
        second = await anext(quick)
        broadcast.refresh()
        return first, second, await anext(quick), await anext(slow)

    first, second, third, late = asyncio.run(run())
    assert first[0] == first[1] and first[0][0] == "state" and len(taken) == 3
    assert second == ("change", '{"version":2,"number":1,"points":[[1,null]],"misses":[{"n":2}],"recent":[]}')
    assert third[0] == "change" and late[0] == "state" and json.loads(late[1])["number"] == 2


def test_modules_that_cannot_be_joined_are_refused(tmp_path: Path):
    """A circle, or an import in a form that the joiner does not know."""
    (tmp_path / "index.html").write_text("<style>/*STYLE*/</style><script>/*SCRIPT*/</script>")
    (tmp_path / "a.js").write_text('import { b } from "./b.js";\nexport const a = b;\n')
    (tmp_path / "b.js").write_text("export const b = 1;\n")
    (tmp_path / "main.js").write_text('import { a } from "./a.js";\na;\n')
    assert b"const { b } = module_b;\nconst a = b;\nreturn { a };" in build_page(tmp_path).html
    (tmp_path / "b.js").write_text('import { a } from "./a.js";\nexport const b = a;\n')
    with pytest.raises(ValueError, match="main -> a -> b -> a: modules import each other in a circle"):
        build_page(tmp_path)
    (tmp_path / "b.js").write_text("export default 1;\n")
    with pytest.raises(ValueError, match=r"b\.js: cannot join 'export default 1;'"):
        build_page(tmp_path)
