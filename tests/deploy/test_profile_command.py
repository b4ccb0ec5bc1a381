"""`pdserve profile`, where the clusters that it measures fail it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from bench.load.result import BadAnswer
from bench.served.server import ServerFailed
from deploy.cli import main
from deploy.commands import profile
from deploy.commands.profile import _log_dir
from pdserve.exit import StartError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ServerFailed("split did not start"), "split did not start"),
        (BadAnswer("503 no decode worker is up"), "503 no decode worker is up"),
        (TimeoutError(), "TimeoutError"),
        (ExceptionGroup("clients", [BadAnswer("cut off")]), "cut off"),
    ],
)
def test_a_cluster_that_fails_while_it_is_measured_is_one_line(error: Exception, said: str) -> None:
    with pytest.raises(StartError) as caught, _log_dir("the model", "--mock-delays") as log_dir:
        assert log_dir.is_dir()
        raise error
    assert caught.value.message == f"the model could not be served: {said}; --mock-delays does without"
    assert not log_dir.exists()


def test_a_bug_of_ours_is_not_told_as_a_server_that_fails() -> None:
    with pytest.raises(ExceptionGroup), _log_dir("the model", "--mock-delays"):
        raise ExceptionGroup("clients", [KeyError("x")])


@pytest.mark.parametrize(("ended_by", "code"), [("failure", 1), ("SIGTERM", 0)])
def test_what_was_measured_before_serving_ended_is_kept(
    ended_by: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(*_: object) -> None:
        if ended_by == "failure":
            raise StartError("the model could not be served: too busy; --mock-delays does without")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(profile, "_served", serve)
    path = tmp_path / "p.json"
    flags = ["--shapes", "4", "--budget-s", "1", "--no-transfers", "--threads", "1", "--pin-cores", "off"]
    assert main(["profile", "deploy/models/demo", "-o", str(path), *flags]) == code
    assert "the profile is without delays" in "".join(capsys.readouterr())
    kept = json.loads(path.read_text())["measured"]
    assert kept["points"] and kept["delays"] is None
