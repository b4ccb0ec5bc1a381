"""What the request log and the traces need is found missing before a model is loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from deploy.record_sinks import check_sinks, open_sinks
from pdserve.config import RouterConfig
from pdserve.exit import ExitCode, StartError


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    """Exit code 6, and the flag is named."""
    path = tmp_path / "missing" / "log"
    with pytest.raises(StartError, match=f"--request-log is {path}; No such file") as caught:
        check_sinks(RouterConfig(request_log=str(path)))
    assert caught.value.exit_code is ExitCode.OUTPUT


@pytest.mark.parametrize("whole", [True, False], ids=["no opentelemetry at all", "no exporter"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """Exit code 3, and what to install."""

    def find_spec(name: str) -> object:
        if whole:
            raise ModuleNotFoundError(name="opentelemetry")
        return None if "exporter" in name else object()

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(
        StartError, match=r"--otlp-endpoint is http://c:4317; opentelemetry\..*pdserve\[tracing\]"
    ) as caught:
        open_sinks(RouterConfig(otlp_endpoint="http://c:4317"), "m")
    assert caught.value.exit_code is ExitCode.ENVIRONMENT


def test_nothing_is_opened_unasked() -> None:
    """The default."""
    check_sinks(RouterConfig())
    assert open_sinks(RouterConfig(), "m") == []
