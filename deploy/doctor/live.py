"""A cluster that runs already: its workers, its leaks, and its links as traffic found them."""

from __future__ import annotations

import email.utils
import http.client
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from prometheus_client.parser import text_string_to_metric_families

from deploy.doctor.finding import Finding, fail, ok, warn
from deploy.doctor.judge import MIN_SHARE_OF_PEERS
from pdserve.exit import ExitCode, StartError

AREA = "running cluster"
TIMEOUT_S = 10.0
MIN_BYTES = 1 << 20  # of a transfer: what is smaller is over before its link has shown what it can
WANTED = "give the address of its HTTP, HOST:PORT or http://HOST:PORT"
_KEY_HINTS = {
    401: "; it asks for a key: give --api-key or PDSERVE_API_KEY",
    403: "; a tenant's key does not see it: give --api-key the server's own",
}
MAX_SKEW_S = 2.0  # the server's Date has whole seconds


@dataclass(frozen=True, slots=True)
class Series:
    """One line of /metrics."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class LiveLink:
    """A pair of workers, and the bandwidth of the last transfer between them."""

    src: str
    dst: str
    bytes_per_second: float | None  # None: nothing has moved yet


@dataclass(frozen=True, slots=True)
class Expected:
    """The workers that there should be, as far as somebody said."""

    ids: Sequence[str] = ()  # of the ready file
    counts: Mapping[str, int] = field(default_factory=dict)  # role -> number, of the command line


@dataclass(frozen=True, slots=True)
class Scrape:
    """What the router said, and by how much its clock differs from ours."""

    series: list[Series]
    skew_s: float | None

    def of(self, name: str) -> list[Series]:
        return [one for one in self.series if one.name == f"pdserve_{name}"]

    def up(self, role: str) -> list[str]:
        """The workers of a role that live: a dead one's series is gone."""
        return [one.labels["worker"] for one in self.of("worker_up") if one.value == 1 and one.labels["role"] == role]


def scrape(server: str, api_key: str | None = None) -> Scrape:
    """A router's /metrics; StartError when it does not answer, wants another key, or is something else."""
    url = f"http://{server}/metrics"
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
            now, date = time.time(), answer.headers.get("Date")
            text = answer.read().decode()
        families = list(text_string_to_metric_families(text))
    except urllib.error.HTTPError as error:
        raise _bad(server, f"{url}: {error}{_KEY_HINTS.get(error.code, '')}") from None
    except (http.client.HTTPException, ValueError):  # ours answers HTTP, in UTF-8
        raise _bad(server, f"what answers there is not pdserve's HTTP door (its gRPC door?): {WANTED}") from None
    except OSError as error:
        raise _bad(server, f"{url}: {error}") from None
    series = [Series(s.name, dict(s.labels), float(s.value)) for family in families for s in family.samples]
    if not any(one.name.startswith("pdserve_") for one in series):
        raise _bad(server, f"{url} is not of pdserve: {WANTED}")
    skew_s = email.utils.parsedate_to_datetime(date).timestamp() - now if date else None
    return Scrape(series, skew_s)


def _bad(server: str, why: str) -> StartError:
    return StartError(f"--server is {server}; {why}", ExitCode.ENVIRONMENT)


def live_links(seen: Scrape) -> list[LiveLink]:
    """Every prefill-decode pair of the workers that are up."""
    roles: dict[str, list[str]] = {"prefill": [], "decode": []}
    for one in seen.of("worker_up"):
        roles.setdefault(one.labels["role"], []).append(one.labels["worker"])
    rates = {(one.labels["src"], one.labels["dst"]): one.value for one in seen.of("link_bandwidth_bytes_per_second")}
    return [
        LiveLink(src, dst, rates.get((src, dst))) for src in sorted(roles["prefill"]) for dst in sorted(roles["decode"])
    ]


def judge_cluster(seen: Scrape, links: Sequence[LiveLink], expected: Expected = Expected()) -> list[Finding]:
    """What is wrong with it, as far as it tells."""
    counted = [_workers(seen, expected), _leaks(seen), _failures(seen), *_transports(seen)]
    small = _mean_bytes(seen) < MIN_BYTES
    return [*counted, *(_judge(link, links, small) for link in links), *_skew(seen)]


def _mean_bytes(seen: Scrape) -> float:
    """Of a transfer."""
    done = sum(one.value for one in seen.of("kv_transfer_seconds_count"))
    return sum(one.value for one in seen.of("kv_transfer_bytes_total")) / done if done else 0.0


def _workers(seen: Scrape, expected: Expected) -> Finding:
    up = {role: seen.up(role) for role in ("prefill", "decode")}
    said = ", ".join(f"{role} {len(ids)}" for role, ids in up.items())
    missing = sorted(set(expected.ids) - {one for ids in up.values() for one in ids})
    other = {role: count for role, count in expected.counts.items() if len(up[role]) != count}
    if missing:
        said += f"; missing: {', '.join(missing)}"
    if other:
        said += "; wanted: " + ", ".join(f"--{role} {count}" for role, count in other.items())
    if not up["decode"]:
        return fail(AREA, "workers up", said, "nothing can be served: look at the server's log, start it again")
    if missing:
        return fail(AREA, "workers up", said, "they ended: the server's log says why; start it again")
    if other:
        return fail(AREA, "workers up", said, "is it another cluster, did workers end? The server's log says")
    return ok(AREA, "workers up", said)


def _leaks(seen: Scrape) -> Finding:
    count = sum(one.value for one in seen.of("kv_leaked_blocks"))
    if count:
        return fail(AREA, "leaked KV blocks", f"{count:g}", "a bug: keep the workers' logs; a restart gives them back")
    return ok(AREA, "leaked KV blocks", "0")


def _failures(seen: Scrape) -> Finding:
    failed = {one.labels.get("reason", "?"): one.value for one in seen.of("kv_transfer_failures_total") if one.value}
    done = sum(one.value for one in seen.of("kv_transfer_seconds_count"))
    said = f"{done:g} done, {sum(failed.values()):g} failed"
    if failed:
        reasons = ", ".join(f"{reason} {count:g}" for reason, count in failed.items())
        return warn(AREA, "transfers", f"{said} ({reasons})", "the workers' logs say which pairs broke, and why")
    return ok(AREA, "transfers", said)


def _transports(seen: Scrape) -> list[Finding]:
    """More than one means that some pair could not use the best."""
    moved = {one.labels["transport"]: one.value for one in seen.of("kv_transfer_bytes_total") if one.value}
    if not moved:
        return []
    said = ", ".join(f"{name} {num_bytes / 2**20:,.1f} MiB" for name, num_bytes in sorted(moved.items()))
    if len(moved) > 1:
        hint = "pairs on one host that use gloo beside others that use shm fell back: their logs say why"
        return [warn(AREA, "transports", said, hint)]
    return [ok(AREA, "transports", said)]


def _judge(link: LiveLink, links: Sequence[LiveLink], small: bool) -> Finding:
    name = f"{link.src} -> {link.dst}"
    if link.bytes_per_second is None or not math.isfinite(link.bytes_per_second):
        return ok(AREA, name, "nothing has moved on it yet")
    said = f"{_rate(link.bytes_per_second)} in the last transfer"
    if small:
        return ok(AREA, name, f"{said}; transfers are too small to judge it by")
    others = [one.bytes_per_second for one in links if one is not link and one.bytes_per_second is not None]
    if others and link.bytes_per_second < MIN_SHARE_OF_PEERS * median(others):
        hint = f"below {MIN_SHARE_OF_PEERS:.0%} of the other links' median, {_rate(median(others))}"
        return warn(AREA, name, f"{said}: slow", hint)
    return ok(AREA, name, said)


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.2f} GB/s" if bytes_per_second >= 1e8 else f"{bytes_per_second / 1e6:.1f} MB/s"


def _skew(seen: Scrape) -> list[Finding]:
    """Only logs and dashboards care: no duration of ours is taken from two clocks."""
    if seen.skew_s is None:
        return []
    said = f"{abs(seen.skew_s):.0f} s" if abs(seen.skew_s) >= 1 else "below 1 s"
    if abs(seen.skew_s) > MAX_SKEW_S:
        return [warn(AREA, "clock skew", said, "logs of the machines do not line up: run an NTP daemon on both")]
    return [ok(AREA, "clock skew", said)]
