"""Everything for one cluster as files: what is in them, not where they go.

prometheus.yml  rules/recording.yml  rules/alerts.yml  alertmanager.yml
grafana/provisioning/datasources/pdserve.yaml  grafana/provisioning/dashboards/pdserve.yaml
grafana/dashboards/*.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.observability.alerts import alert_groups
from deploy.observability.names import JOB
from deploy.observability.recording import recording_groups

DASHBOARDS = Path(__file__).parent / "grafana"
_HEAD = "# Made by `pdserve observability`; make it again rather than edit it.\n"


@dataclass(frozen=True, slots=True)
class Bundle:
    """What the files are made for."""

    target: float = 0.9  # share of requests that shall meet both thresholds
    routers: tuple[str, ...] = ("127.0.0.1:8000",)  # HTTP addresses
    model: str = "pdserve"  # label of every series
    workers: bool = False  # scrape every worker's own port too, as the first router lists them
    scrape_interval: str = "5s"
    credentials_file: str | None = None  # holds the server's key, where it asks for one; read by Prometheus
    alertmanager: str = "127.0.0.1:9093"
    prometheus: str = "127.0.0.1:9090"  # as Grafana reaches it
    dashboards: str = "/etc/grafana/dashboards/pdserve"  # where Grafana will find them

    def files(self) -> dict[str, str]:
        """Path within the bundle -> text."""
        made = {
            "prometheus.yml": _yaml(self._prometheus()),
            "rules/recording.yml": _yaml({"groups": recording_groups(self.target)}),
            "rules/alerts.yml": _yaml({"groups": alert_groups(self.target)}),
            "alertmanager.yml": _yaml(_alertmanager()),
            "grafana/provisioning/datasources/pdserve.yaml": _yaml(self._datasources()),
            "grafana/provisioning/dashboards/pdserve.yaml": _yaml(self._providers()),
        }
        for path in sorted(DASHBOARDS.glob("*.json")):
            made[f"grafana/dashboards/{path.name}"] = path.read_text(encoding="utf-8")
        return made

    def _prometheus(self) -> dict[str, Any]:
        return {
            "global": {"scrape_interval": self.scrape_interval, "evaluation_interval": self.scrape_interval},
            "rule_files": ["rules/*.yml"],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [self.alertmanager]}]}]},
            "scrape_configs": [self._routers(), *([self._workers()] if self.workers else [])],
        }

    def _routers(self) -> dict[str, Any]:
        targets = {"targets": list(self.routers), "labels": {"model": self.model}}
        return {"job_name": JOB, "metrics_path": "/metrics", **self._key(), "static_configs": [targets]}

    def _workers(self) -> dict[str, Any]:
        """A job of another name: rules and dashboards count what the routers show, once."""
        discovery = {"url": f"http://{self.routers[0]}/metrics/targets", "refresh_interval": "30s", **self._key()}
        named = [{"source_labels": [f"__meta_pdserve_{one}"], "target_label": one} for one in ("worker", "role")]
        return {
            "job_name": f"{JOB}-workers",
            "honor_labels": True,  # most series name their worker themselves
            "http_sd_configs": [discovery],
            "relabel_configs": [*named, {"target_label": "model", "replacement": self.model}],
        }

    def _key(self) -> dict[str, Any]:
        if self.credentials_file is None:
            return {}
        return {"authorization": {"type": "Bearer", "credentials_file": self.credentials_file}}

    def _datasources(self) -> dict[str, Any]:
        source = {
            "name": "pdserve",
            "uid": "pdserve-prometheus",
            "type": "prometheus",
            "access": "proxy",
            "url": f"http://{self.prometheus}",
            "jsonData": {"timeInterval": self.scrape_interval},
        }
        return {"apiVersion": 1, "datasources": [source]}

    def _providers(self) -> dict[str, Any]:
        provider = {
            "name": "pdserve",
            "type": "file",
            "folder": "pdserve",
            "disableDeletion": True,
            "options": {"path": self.dashboards},
        }
        return {"apiVersion": 1, "providers": [provider]}


def _alertmanager() -> dict[str, Any]:
    """A page every hour, a ticket every day, both to a receiver that does nothing until you fill it in."""
    return {
        "route": {
            "receiver": "tickets",
            "group_by": ["alertname", "model", "slo_class"],
            "repeat_interval": "1d",
            "routes": [{"matchers": ['severity="page"'], "receiver": "pages", "repeat_interval": "1h"}],
        },
        "inhibit_rules": [
            {
                "source_matchers": ['alertname="PdserveSloBurnFast"'],
                "target_matchers": ['alertname=~"PdserveSloBurn(Medium|Slow)|PdserveAttainmentBelowTarget"'],
                "equal": ["model", "slo_class"],
            }
        ],
        "receivers": [{"name": "pages"}, {"name": "tickets"}],
    }


def _yaml(data: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(data, sort_keys=False, width=10_000, allow_unicode=True)
    return _HEAD + text
