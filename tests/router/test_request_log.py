"""The request log: one line per request, never in the router's way."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from pdserve.sampling import FinishReason
from pdserve.slo import Blame, Slo, Timing, Verdict
from router.background import BackgroundSink, LostRecords
from router.record import Outcome, Predicted, RequestRecord, Transfer, WorkerTimes
from router.request_log import RequestLog

SERVED = RequestRecord(
    request_id='a "quoted"\nid', tenant="t", priority=0, slo=Slo("gold", 1.0, 0.1), deadline_s=600.0,
    trace_parent=None, outcome=Outcome.FINISHED, finish_reason=FinishReason.LENGTH, error_status=None, error=None,
    prompt_tokens=64, completion_tokens=5, cached_tokens=16, received_unix_s=1_700_000_000.25, dispatched_s=0.001,
    prefill_started_s=0.3, first_token_s=0.5, reserved_s=0.01, committed_s=0.9, decode_started_s=1.0, ended_s=2.5,
    timing=Timing(0.3, 0.2, 0.4, 0.1, 1.5, 0.5, 0.5, "prefill-0", "decode-0", 1),
    predicted=Predicted(0.1, 0.2, None, 0.01, 0.02), verdict=Verdict(True, False, Blame.DECODE),
    prompt_times=WorkerTimes(0.29, 0.2), decode_times=WorkerTimes(0.1, 0.02),
    transfer=Transfer(4096, 1, 0.4, 0.05, "shm"),
)  # fmt: skip


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_everything(tmp_path: Path) -> None:
    """And is one line, whatever a client put into its id; a rejected request has nulls."""
    sink = BackgroundSink("request_log", RequestLog(str(tmp_path / "log")))
    sink.record(SERVED)
    sink.record(replace(SERVED, outcome=Outcome.REJECTED, verdict=None, first_token_s=None, transfer=None))
    sink.close()
    served, rejected = lines_of(tmp_path / "log")
    assert served["request_id"] == 'a "quoted"\nid' and served["time"] == "2023-11-14T22:13:20.250000+00:00"
    assert served["phases"] == {
        "queue_s": 0.3, "prefill_s": 0.2, "transfer_s": 0.4, "decode_wait_s": 0.1, "decode_s": 1.5
    }  # fmt: skip
    assert served["verdict"] == {"met_ttft": True, "met_tpot": False, "blame": "decode"}
    assert served["predicted"]["transfer_s"] is None and served["transfer"]["transport"] == "shm"  # type: ignore[index]
    assert (served["ttft_s"], served["tpot_s"], served["ended_s"]) == (0.5, 0.5, 2.5)
    assert (rejected["outcome"], rejected["ttft_s"], rejected["verdict"]) == ("rejected", None, None)
    assert sink.num_lost == 0


def test_it_is_appended_to_and_follows_its_name(tmp_path: Path) -> None:
    """A second start keeps the first one's lines; a renamed file is begun anew (logrotate)."""
    path = tmp_path / "log"
    path.write_text("{}\n")
    log = RequestLog(str(path))
    log.write([SERVED])
    path.rename(tmp_path / "log.1")
    log.write([SERVED, SERVED])
    log.close()
    assert len(lines_of(tmp_path / "log.1")) == 2 and len(lines_of(path)) == 2


def test_it_goes_on_where_its_folder_was_away_for_a_while(tmp_path: Path) -> None:
    """Records of that time are lost, later ones are not."""
    folder = tmp_path / "logs"
    folder.mkdir()
    log = RequestLog(str(folder / "log"))
    folder.rename(tmp_path / "old")
    for _ in range(2):
        with pytest.raises(OSError, match="No such file"):
            log.write([SERVED])
    folder.mkdir()
    log.write([SERVED])
    log.close()
    assert len(lines_of(folder / "log")) == 1


def test_it_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    """The file is left behind with what it could not take."""
    log = RequestLog("/dev/full")
    with pytest.raises(OSError, match="No space"):
        log.write([SERVED])
    log._path = tmp_path / "log"  # as if a disk with room had been put there
    log.write([SERVED])
    log.close()
    assert len(lines_of(tmp_path / "log")) == 1


def test_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """A dash."""
    log = RequestLog("-")
    log.write([SERVED])
    log.close()
    assert json.loads(capsys.readouterr().out)["tenant"] == "t"


class Stuck:
    """A writer that waits for the test, and then fails once."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.written = 0
        self.closed = False

    def write(self, records: list[RequestRecord]) -> None:
        self.entered.set()
        assert self.go_on.wait(10.0)
        if not self.written:
            self.written = -1
            raise OSError("disk full")
        self.written += len(records)

    def close(self) -> None:
        self.closed = True


def test_a_slow_disk_costs_records_not_time() -> None:
    """What does not fit is dropped and counted, so is what the writer failed with; the rest is written."""
    writer = Stuck()
    sink = BackgroundSink("request_log", writer, max_waiting=10)
    sink.record(SERVED)
    assert writer.entered.wait(10.0)
    for _ in range(15):
        sink.record(SERVED)  # nobody takes them: this must not wait
    assert sink.num_dropped == 5
    writer.go_on.set()
    sink.close()
    assert writer.closed and sink.num_failed == 1 and sink.num_lost == 6 and writer.written == -1 + 10
    (family,) = LostRecords([sink]).collect()
    assert [(one.name, one.labels, one.value) for one in family.samples] == [
        ("pdserve_records_lost_total", {"sink": "request_log"}, 6.0)
    ]
