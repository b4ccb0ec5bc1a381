"""`pdserve observability`: what it writes for whom, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deploy.cli import main
from deploy.ready_file import ReadyInfo, ReadyWorker, write_ready_file


def scrape_configs(directory: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = yaml.safe_load((directory / "prometheus.yml").read_text())["scrape_configs"]
    return found


def test_it_writes_for_the_cluster_of_a_ready_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its address and its model; every file that the documentation names."""
    ready, out = tmp_path / "ready.json", tmp_path / "new" / "watch"
    write_ready_file(ready, ReadyInfo("127.0.0.1:1", "127.0.0.1:8123", "demo", [ReadyWorker("d", "decode", 1, "cpu")]))
    assert main(["observability", "-o", str(out), "--ready-file", str(ready), "--target", "0.99"]) == 0
    assert "wrote 8 files" in capsys.readouterr().out
    (routers,) = scrape_configs(out)
    assert routers["static_configs"] == [{"targets": ["127.0.0.1:8123"], "labels": {"model": "demo"}}]
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        "prometheus.yml", "alertmanager.yml", "rules/recording.yml", "rules/alerts.yml",
        "grafana/provisioning/datasources/pdserve.yaml", "grafana/provisioning/dashboards/pdserve.yaml",
        "grafana/dashboards/service.json", "grafana/dashboards/workers.json",
    }  # fmt: skip
    assert "vector(0.99)" in (out / "rules/recording.yml").read_text()


def test_it_writes_for_several_routers_that_ask_for_a_key(tmp_path: Path) -> None:
    """Both jobs show the key; the workers are found through the first router."""
    command = ["observability", "-o", str(tmp_path), "--http", "a:8000", "--http", "b:8000", "--model", "big",
               "--credentials-file", "key", "--workers", "--scrape-interval", "15s"]  # fmt: skip
    assert main(command) == 0
    routers, workers = scrape_configs(tmp_path)
    key = {"type": "Bearer", "credentials_file": "key"}
    assert routers["static_configs"] == [{"targets": ["a:8000", "b:8000"], "labels": {"model": "big"}}]
    assert routers["authorization"] == key
    assert workers["http_sd_configs"] == [
        {"url": "http://a:8000/metrics/targets", "refresh_interval": "30s", "authorization": key}
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--target", "1"], 2, "--target is 1; it must be from 0.5 to below 1"),
        (["--target", "0.2"], 2, "--target is 0.2"),
        (["--http", "nowhere"], 2, "--http is 'nowhere'; it must be HOST:PORT"),
        (["--scrape-interval", "soon"], 2, "--scrape-interval is 'soon'"),
        (["--ready-file", "no-such-file"], 2, "is the server running?"),
        (["--ready-file", "pyproject.toml"], 2, "it is not one that pdserve serve wrote"),
        (["-o", "pyproject.toml"], 6, "--output is pyproject.toml"),
    ],
)
def test_bad_arguments_are_one_line_and_a_code(
    arguments: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What, where, value, what is allowed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    assert main(["observability", "-o", str(tmp_path / "out"), *arguments]) == code
    assert words in capsys.readouterr().err
