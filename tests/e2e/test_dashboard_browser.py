"""The dashboard in headless Chromium, over real traffic through a mock cluster that asks for a key."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEY = "s3cret"
HEADERS = {"authorization": f"Bearer {KEY}"}
PATIENCE_S = 20.0
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip
# the browser speaks on descriptors 3 and 4
AT_3_AND_4 = "import os, sys; a, b, *c = sys.argv[1:]; os.dup2(int(a), 3); os.dup2(int(b), 4); os.execv(c[0], c)"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]

POOR_CONTRAST = """
(() => {
  const parsed = (text) => {
    const parts = text.match(/[\\d.]+/g).map(Number);
    const scale = text.startsWith("color(") ? 1 : 255;
    return {rgb: parts.slice(0, 3).map((part) => part / scale), alpha: parts.length > 3 ? parts[3] : 1};
  };
  const luminance = ({rgb}) => {
    const [r, g, b] = rgb.map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parsed(getComputedStyle(node).backgroundColor);
      if (colour.alpha > 0.9) return colour;
    }
    return {rgb: [1, 1, 1]};
  };
  const poor = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !node.checkVisibility() || node.closest("svg, script, style, .sr, .skip")) continue;
    const [high, low] = [luminance(parsed(getComputedStyle(node).color)), luminance(ground(node))].sort((a, b) => b - a);
    count += 1;
    if ((high + 0.05) / (low + 0.05) < 4.5) poor.push(texts.currentNode.textContent.trim().slice(0, 40));
  }
  return {count, poor};
})()
"""  # noqa: E501


class Page:
    """One tab, in a session of the DevTools protocol."""

    def __init__(self, browser: Browser, target: str) -> None:
        self._browser = browser
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        return self._browser.call(method, self._session, **params)

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, code: str) -> Any:
        """The expression's value, once it is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := self.run(code)):
            assert time.monotonic() < deadline, f"never came true: {code}\n{self.problems()}"
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).textContent"))

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def events(self, method: str) -> list[dict[str, Any]]:
        found = [one for one in self._browser.events if one.get("sessionId") == self._session]
        return [one["params"] for one in found if one["method"] == method]

    def problems(self) -> list[Any]:
        """Exceptions, and whatever went to the console or the browser's log."""
        logged = [entry["entry"]["text"] for entry in self.events("Log.entryAdded")]
        return logged + self.events("Runtime.exceptionThrown") + self.events("Runtime.consoleAPICalled")

    def urls(self) -> set[str]:
        return {one["request"]["url"] for one in self.events("Network.requestWillBeSent")}


class Browser:
    """A headless Chromium, spoken to over two pipes."""

    def __init__(self, profile: Path) -> None:
        read_theirs, self._write = os.pipe()
        self._read, write_theirs = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_theirs, write_theirs)]
        command = [sys.executable, "-c", AT_3_AND_4, *map(str, ends), str(CHROMIUM), *FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        for end in (read_theirs, write_theirs, *ends):
            os.close(end)
        self._buffer, self._last_id = b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        os.write(self._write, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (answer := self._next()).get("id") != self._last_id:
            self.events.append(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, url: str, width: int = 1280, *, dark: bool = False, key: bool = True, moving: bool = False) -> Page:
        """A new tab of that width; `key`: the key is given in the page's form, and the first state has come."""
        page = Page(self, self.call("Target.createTarget", url="about:blank")["targetId"])
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        features += [{"name": "prefers-reduced-motion", "value": "no-preference" if moving else "reduce"}]
        page.call("Emulation.setEmulatedMedia", features=features)
        page.call("Page.navigate", url=url)
        if key:
            give_key(page, KEY)
            page.until("document.getElementById('main').hidden === false")
        return page

    def close_tabs(self) -> None:
        for one in self.call("Target.getTargets")["targetInfos"]:
            if one["url"].startswith("http"):
                self.call("Target.closeTarget", targetId=one["targetId"])
        self.events.clear()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        os.close(self._write)
        os.close(self._read)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], PATIENCE_S)[0], "the browser does not answer"
            self._buffer += os.read(self._read, 1 << 20)
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)  # type: ignore[no-any-return]


def give_key(page: Page, key: str) -> None:
    page.until("document.getElementById('key')?.hidden === false")
    page.run(f"document.getElementById('key-field').value = {json.dumps(key)}")
    page.run("document.getElementById('key').requestSubmit()")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """Without the tabs of the test before."""
    yield chromium
    chromium.close_tabs()


@pytest.fixture(scope="module")
def cluster(
    serve_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, mock_profile: Path
) -> Iterator[Any]:
    """1 + 2 workers with two SLO classes, after 40 requests of which 10 could not meet theirs."""
    directory = tmp_path_factory.mktemp("dashboard")
    (directory / "config.yaml").write_text("slo-classes:\n  chat: {ttft-s: 5.0, tpot-s: 2.0}\n")
    flags = ("--mock", str(mock_profile), "--decode", "2", "--api-key", KEY, "--config", str(directory / "config.yaml"))
    with (
        serve_in(directory, "", *flags, stop=False) as server,
        httpx.Client(base_url=f"http://{server.ready['http']}", headers=HEADERS, timeout=60) as client,
        ThreadPoolExecutor(8) as pool,
    ):

        def ask(number: int) -> int:
            slo = {"class": "chat", "ttft_s": 1e-6} if number % 4 == 0 else {"class": "chat"}
            body = {"prompt": [100 + number] * 200, "max_tokens": 12, "ignore_eos": True, "slo": slo}
            return client.post("/v1/completions", json=body).status_code

        assert set(pool.map(ask, range(40))) == {200}
        server.client = client
        yield server


def url_of(cluster: Any) -> str:
    return f"http://{cluster.ready['http']}/dashboard"


def test_the_numbers_on_the_page_are_the_servers(browser: Browser, cluster: Any) -> None:
    """Requests, misses, blame and percentiles equal the state's and the metrics'; nothing else is asked for."""
    page = browser.open(url_of(cluster))
    page.until("document.getElementById('tile-misses').textContent === '10'")
    sums = cluster.client.get("/dashboard/state").json()["spans"]["300"]["all"]
    assert (sums["requests"], sums["judged"], sums["good"], sums["outcomes"]["finished"]) == (40, 40, 30, 40)
    assert page.text("#tile-attainment") == "75.0 %"
    assert "Finished 40" in page.text("#requests .facts")
    blame = page.run(
        "[...document.querySelectorAll('[data-blame]')].map((one) => [one.dataset.blame, one.textContent])"
    )
    assert {name: int(count) for name, count in blame} == {name: n for name, n in sums["blame"].items() if n}
    for which in ("ttft", "tpot"):
        shown = page.run(f"[...document.querySelectorAll('#{which} [data-figure]')].map((one) => one.firstChild.data)")
        assert shown == [shown_seconds(sums[f"{which}_s"][name]) for name in ("p50", "p95", "p99")]
    metrics = cluster.client.get("/metrics").text
    assert 'pdserve_requests_total{outcome="finished"} 40.0' in metrics
    assert sum(int(count) for _, count in blame) == 10
    assert page.urls() == {url_of(cluster), f"{url_of(cluster)}/events"}
    assert [one for one in page.problems() if "401" not in str(one)] == []
    assert len(base64.b64decode(page.call("Page.captureScreenshot", format="png")["data"])) > 20_000  # it was painted


def shown_seconds(value: float) -> str:
    """As format.js writes it, between one millisecond and ten seconds: a busy machine takes more than one."""
    if value >= 0.9995:
        return f"{value:.2f} s"
    return f"{value * 1000:.1f} ms" if value < 0.01 else f"{math.floor(value * 1000 + 0.5)} ms"


def test_a_miss_opens_and_its_walk_is_drawn(browser: Browser, cluster: Any) -> None:
    """Details name the request, its workers and what moved; the walk is of that request."""
    page = browser.open(url_of(cluster), moving=True)
    page.until("document.querySelectorAll('.miss').length >= 6")
    miss = cluster.client.get("/dashboard/state").json()["misses"][0]
    page.click(".miss")
    details = page.text(".details:not([hidden])")
    assert miss["id"] in details and f"prefill-0 → {miss['decode_worker']}" in details and "200 in" in details
    assert page.run("document.querySelector('.miss').getAttribute('aria-expanded')") == "true"
    page.click(".details:not([hidden]) .quietbutton")
    page.until("document.querySelector('.tools button').textContent === 'Pause'")
    page.until("Number(document.querySelector('.tools input').value) > 100")  # it moves
    assert miss["id"][:24] in page.run("document.querySelector('.tools select').selectedOptions[0].textContent")
    assert "Prefill" in page.run("document.querySelector('svg.walk').getAttribute('aria-label')")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_and_can_be_read(browser: Browser, cluster: Any, width: int, dark: bool) -> None:
    """No sideways scrolling, AA contrast of every text, and every control has a name."""
    page = browser.open(url_of(cluster), width, dark=dark)
    page.until("document.querySelectorAll('.card .kv').length === 3")
    assert page.run("document.documentElement.scrollWidth") == width
    seen = "[...document.querySelectorAll('main *')].filter((one) => one.checkVisibility()"
    outside = f"!one.closest('pre, .segments, .sr') && one.getBoundingClientRect().right > {width}"
    wide = page.run(f"{seen} && {outside}).length")
    assert wide == 0
    found = page.run(POOR_CONTRAST)
    assert found["count"] > 100 and found["poor"] == []
    nameless = (
        "[...document.querySelectorAll('button, input, select, .chartbox')].filter((one) => one.checkVisibility()"
    )
    labels = "!one.textContent.trim() && !one.getAttribute('aria-label') && !one.labels?.length"
    assert page.run(f"{nameless} && {labels}).length") == 0


def test_the_key_is_asked_for_and_a_wrong_one_refused(browser: Browser, cluster: Any) -> None:
    """No number is shown before; the key stays in the tab."""
    page = browser.open(url_of(cluster), key=False)
    give_key(page, "wrong")
    page.until("document.getElementById('key-problem').textContent === 'That key was not accepted.'")
    assert page.run("document.getElementById('main').hidden")
    give_key(page, KEY)
    page.until("document.getElementById('main').hidden === false")
    assert page.run("[sessionStorage.length, JSON.stringify(localStorage).includes('s3cret')]") == [1, False]


def test_a_lost_worker_and_a_lost_server_are_said(browser: Browser, cluster: Any) -> None:
    """A banner and the worker's card at once; then the whole page as old, with the time of the last update."""
    page = browser.open(url_of(cluster), 390)
    page.until("document.querySelectorAll('.card .kv').length === 3")
    cluster.kill("decode-1")
    page.until("document.querySelector('[data-worker=decode-1]').classList.contains('down')")
    assert "1 worker is down: decode-1" in page.text("#banners")
    page.until("document.getElementById('events').textContent.includes('decode-1 was lost')")
    assert "1 below" in page.text("#plan")
    cluster.process.kill()
    page.until("document.getElementById('link').dataset.state === 'lost'")
    assert "Connection lost · last update " in page.text("#link")
    assert page.run("document.body.classList.contains('stale')")
