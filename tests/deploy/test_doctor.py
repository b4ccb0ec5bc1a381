"""`pdserve doctor` names each fault that is put before it, and nothing where there is none."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli import main
from deploy.cores import Machine
from deploy.doctor.finding import Finding, Status, as_json, ok, table, worst
from deploy.doctor.gpus import judge_gpus
from deploy.doctor.machine import (
    Wanted,
    check_clock,
    check_cores,
    check_dev_shm,
    check_huge_pages,
    check_memfd,
    check_memory,
    check_open_files,
    check_ports,
)
from deploy.doctor.software import check_cpu, check_kernels, check_packages, check_python
from deploy.doctor.surroundings import check_model, check_ray
from deploy.gpus import Gpu, Gpus
from engine.native.build import is_whole, library_path

Files = type("Files", (), {})


@pytest.fixture
def taken_port() -> object:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def statuses(findings: list[Finding]) -> dict[str, Status]:
    return {one.check: one.status for one in findings}


# ---- software ----


def test_an_old_python_is_named() -> None:
    """pyproject.toml says what is allowed."""
    assert check_python("3.9.1")[0].status is Status.FAIL
    assert "3.9.1, not >=3.11" in check_python("3.9.1")[0].found
    assert check_python("3.12.0rc1")[0].status is Status.OK


def test_missing_and_wrong_packages_are_named() -> None:
    """What an extra alone needs is a fault only where the extra is wanted; developers' packages never are."""
    required = ["numpy<0.1", "no-such-package>=2", "pytest>=999; extra == 'dev'", "numpy<0.2; extra == 'tracing'",
                "no-such-ray>=2; extra == 'ray'", "no-such-too; sys_platform == 'none'", "pyyaml>=6"]  # fmt: skip
    found = check_packages(frozenset(), required)
    assert [(one.check, one.status) for one in found] == [
        ("numpy", Status.FAIL), ("no-such-package", Status.FAIL), ("numpy", Status.WARN), ("packages", Status.OK),
    ]  # fmt: skip
    assert "<0.1" in found[0].found and "pip install 'no-such-package>=2'" in found[1].hint
    asked = check_packages(frozenset({"ray"}), required)
    assert statuses(asked)["no-such-ray"] is Status.FAIL


def test_this_environment_is_as_pyproject_allows() -> None:
    """The real list of requirements."""
    (found,) = check_packages(frozenset())
    assert found.status is Status.OK and int(found.found.split()[0]) > 15


def test_missing_and_damaged_kernels_are_named(tmp_path: Path) -> None:
    """Not built; built, but no library."""
    missing = check_kernels(tmp_path / "nowhere" / "kernels.so")
    assert (missing.status, missing.found) == (Status.WARN, "not built for this CPU")
    damaged = tmp_path / "kernels.so"
    damaged.write_bytes(b"not a library")
    assert check_kernels(damaged).status is Status.WARN
    assert "python -m engine.native" in check_kernels(damaged).hint


@pytest.mark.skipif(not is_whole(library_path()), reason="the native kernels are not built")
def test_built_kernels_are_loaded() -> None:
    """Those of this machine."""
    assert check_kernels(library_path()).status is Status.OK


def test_a_cpu_without_wide_vectors_is_named() -> None:
    """By what /proc/cpuinfo says."""
    old, new = check_cpu("flags\t\t: fpu avx2 fma\n"), check_cpu("flags\t\t: avx2 fma avx512f amx_tile\n")
    assert "avx2, fma" in old.found and "amx_tile" in new.found
    assert new.status is Status.OK


# ---- machine ----


def test_too_few_cores_and_too_little_memory_are_named() -> None:
    """Beside the workers that are wanted."""
    wanted, small = Wanted(prefill=2, decode=2), Machine(((0,), (1,)))
    assert check_cores(wanted, small).status is Status.WARN
    assert check_cores(Wanted(), small).status is Status.OK
    assert check_cores(wanted, Machine(tuple((n,) for n in range(64)), quota=2.0)).status is Status.WARN
    assert check_memory(wanted, 1 << 30).status is Status.WARN
    assert check_memory(wanted, 1 << 36).status is Status.OK


def test_one_worker_is_one() -> None:
    """In every line that counts them."""
    small = Machine(((0,), (1,)))
    for alone in (Wanted(prefill=0), Wanted(prefill=0, runs=True)):
        found = [check_cores(alone, small), check_memory(alone, 1 << 20), check_open_files(alone)]
        said = " ".join(f"{one.found} {one.hint}" for one in found)
        assert "for 1 worker and a router: 2 threads each" in said and "1 workers" not in said


@pytest.mark.parametrize(("limit", "status"), [(300, Status.FAIL), (400, Status.WARN), (8000, Status.OK)])
def test_a_low_limit_of_open_files_is_named(limit: int, status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too low for the workers; for the workers alone; for requests too."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, limit))
    found = check_open_files(Wanted(prefill=1, decode=1))
    assert found.status is status
    assert f"limit {limit:,}" in found.found


def test_memory_files_that_are_forbidden_are_named() -> None:
    """As a seccomp profile does it."""

    def forbidden(name: str) -> int:
        raise PermissionError(1, "Operation not permitted")

    found = check_memfd(forbidden)
    assert found.status is Status.WARN and "Operation not permitted" in found.found and "gloo" in found.hint
    assert check_memfd().status is Status.OK


def test_an_unusable_dev_shm_is_named(tmp_path: Path) -> None:
    """Missing: a warning where nothing needs it, a fault for Ray and NCCL."""
    missing = tmp_path / "shm"
    assert check_dev_shm(missing, needed=False).status is Status.WARN
    found = check_dev_shm(missing, needed=True)
    assert found.status is Status.FAIL and "No such file" in found.found and "--shm-size" in found.hint
    assert check_dev_shm(tmp_path, needed=True).status is Status.OK


def test_huge_pages_and_clock_sources_that_slow_it_down_are_named(tmp_path: Path) -> None:
    """By the kernel's own words."""
    setting = tmp_path / "enabled"
    for text, status in (("always madvise [never]", Status.WARN), ("always [madvise] never", Status.OK)):
        setting.write_text(text)
        assert check_huge_pages(setting).status is status
    assert check_huge_pages(tmp_path / "none").status is Status.WARN
    setting.write_text("hpet\n")
    assert check_clock(setting).status is Status.WARN


def test_a_taken_port_is_named(taken_port: int) -> None:
    """The flag, the address and why."""
    grpc, http = check_ports(f"127.0.0.1:{taken_port}", "127.0.0.1:0")
    assert (grpc.status, http.status) == (Status.FAIL, Status.OK)
    assert f"127.0.0.1:{taken_port}" in grpc.found and "in use" in grpc.found


def test_an_address_that_serve_would_refuse_is_named() -> None:
    """Beyond this machine it takes --insecure-bind."""
    grpc, http = check_ports("127.0.0.1:0", "0.0.0.0:0")
    assert (grpc.status, http.status) == (Status.OK, Status.WARN) and "without --insecure-bind" in http.hint


# ---- GPUs, model, Ray ----


def card(*reads: int) -> Gpu:
    return Gpu("H100", 80 << 30, (9, 0), reads)


def test_gpus_that_cannot_be_used_are_named() -> None:
    """No CUDA in torch, no card, no Triton, no peer access."""
    assert judge_gpus(Gpus("2.13+cpu", None, (), None, False), wanted=True)[0].status is Status.FAIL
    assert judge_gpus(Gpus("2.13+cpu", None, (), None, False), wanted=False)[0].status is Status.WARN
    assert "sees none" in judge_gpus(Gpus("2.13", "13.0", (), None, True), wanted=True)[0].found
    found = statuses(judge_gpus(Gpus("2.13", "13.0", (card(0, 1), card(1)), (2, 27), False), wanted=True))
    assert found == {"cuda:0": Status.OK, "cuda:1": Status.OK, "Triton": Status.FAIL, "NCCL": Status.OK,
                     "peer access": Status.WARN}  # fmt: skip
    whole = judge_gpus(Gpus("2.13", "13.0", (card(0, 1), card(0, 1)), (2, 27), True), wanted=True)
    assert worst(whole) is Status.OK and "capability 9.0" in whole[0].found


def test_a_model_that_cannot_be_served_is_named(model_files: Files) -> None:
    """With the words that `pdserve serve` has for it."""
    assert worst(check_model(str(model_files.path), Wanted(), on_cpu=True)) is Status.OK
    (model_files.path / "tokenizer.json").unlink()
    (found,) = check_model(str(model_files.path), Wanted(), on_cpu=True)
    assert found.status is Status.FAIL and "tokenizer" in found.found
    (missing,) = check_model(str(model_files.path / "nowhere"), Wanted(), on_cpu=True)
    assert missing.status is Status.FAIL


def test_a_ray_cluster_that_does_not_answer_is_named(taken_port: int) -> None:
    """By its address."""
    pytest.importorskip("ray")
    assert check_ray(f"127.0.0.1:{taken_port}").status is Status.OK
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    assert check_ray(f"127.0.0.1:{free}").status is Status.FAIL


def test_a_ray_address_that_serve_refuses_is_named(taken_port: int) -> None:
    """Ray's clients from afar (ray://) too."""
    pytest.importorskip("ray")
    for address in ("head", f"ray://127.0.0.1:{taken_port}"):
        found = check_ray(address)
        assert found.status is Status.FAIL and found.found == f"--ray is {address!r}; it must be HOST:PORT"


# ---- the command ----


def test_a_fault_makes_it_exit_1_and_is_in_the_table(taken_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A taken port; all else of this machine is told beside it."""
    assert main(["doctor", "--no-links", "--http", f"127.0.0.1:{taken_port}"]) == 1
    out = capsys.readouterr().out
    assert f"--http is 127.0.0.1:{taken_port}; in use" in out
    for area in ("software", "machine", "GPUs", "ports"):
        assert f"\n{area}\n" in f"\n{out}"


def test_gpus_that_were_asked_for_and_are_not_there_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All else is told, and no link is tried."""
    monkeypatch.setattr("deploy.doctor.gpus.find_gpus", lambda: Gpus("2.13", "13.0", (), None, True))
    assert main(["doctor", "--device", "cuda", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]) == 1
    out = capsys.readouterr().out
    assert "sees none" in out and "\nlinks\n" not in out


def test_a_low_limit_is_found_where_it_holds(tmp_path: Path) -> None:
    """In a process that really has it."""
    command = [sys.executable, "-m", "deploy.cli", "doctor", "--no-links", "--decode", "4", "--grpc", "127.0.0.1:0",
               "--http", "127.0.0.1:0", "--json", str(tmp_path / "found.json")]  # fmt: skip

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))

    done = subprocess.run(command, preexec_fn=lower, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    said = json.loads((tmp_path / "found.json").read_text())
    assert said["status"] == "fail"
    (found,) = [one for one in said["findings"] if one["check"] == "open files"]
    assert found["status"] == "fail" and "limit 200; 5 workers need 416" in found["found"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--decode", "0"], 2, "--decode is 0; it must be from 1 to 64"),
        (["--prefill", "65"], 2, "--prefill is 65"),
        (["--kv-transport", "nccl"], 2, "--kv-transport is nccl; --device cpu has auto, shm, gloo"),
        (["--grpc", "nowhere"], 2, "--grpc is 'nowhere'"),
        (["--server", "127.0.0.1:1", "--ready-file", "x"], 2, "both given"),
        (["--ready-file", "no-such-file"], 2, "is the server running?"),
        (["--server", "127.0.0.1:1"], 3, "--server is 127.0.0.1:1"),
        (["--server", "http://x:1/v1"], 2, "it must be HOST:PORT or http://HOST:PORT"),
        (["--no-links", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json", "/no/such/place"], 6, "--json"),
    ],
)
def test_bad_arguments_are_one_line_and_a_code(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What, where, value, what is allowed."""
    assert main(["doctor", *arguments]) == code
    assert words in capsys.readouterr().err


def test_the_table_and_the_json_tell_the_same() -> None:
    """Each finding with its hint; the worst of them first of all."""
    findings = [ok("a", "fine", "yes"), Finding("b", "bad", Status.FAIL, "no", "do this")]
    text, said = table(findings), json.loads(as_json(findings, []))
    assert "fail  bad   no" in text and "-> do this" in text and "1 ok, 0 warn, 1 fail" in text
    assert said["status"] == "fail" and said["findings"][1]["hint"] == "do this"
