"""What is wrong on the command line, in a config file or on the machine: one line each, and the right exit code."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy import cli
from deploy.arguments import check_output
from deploy.config_file import read_config_file
from deploy.flags import add_worker_settings, known_settings, serve_config, worker_flags
from deploy.ready_file import ReadyInfo, ReadyWorker, write_ready_file
from pdserve.exit import StartError
from pdserve.settings import ConfigError

ModelFiles = Any  # the fixture's class, in conftest.py
PROFILE = ("base_s", "per_prefill_token_s", "per_decode_sequence_s", "per_context_token_s")


def call(arguments: Sequence[str]) -> int:
    """The exit code of `pdserve ARGUMENTS`."""
    try:
        return cli.main(arguments)
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code


BAD_ARGUMENTS = {
    "no command": ([], "a command is missing"),
    "unknown command": (["sevre"], "'sevre' is not a command; did you mean serve?"),
    "no model": (["serve"], "MODEL is missing"),
    "unknown flag": (["serve", "M", "--blok-size", "16"], "--blok-size is not a flag; did you mean --block-size?"),
    "another tool's name": (["bench", "--base-url", "http://h"], "--base-url is not a flag; did you mean --server?"),
    "no abbreviations": (["serve", "M", "--block", "16"], "--block is not a flag"),
    "block size 0": (["serve", "M", "--block-size", "0"], "--block-size is 0; it must be a whole number from 1"),
    "block size 3": (["serve", "M", "--block-size", "3"], "--block-size is 3; it must be a power of two"),
    "block size huge": (["serve", "M", "--block-size", "1000000000"], "--block-size is 1000000000; it must be"),
    "block size text": (["serve", "M", "--block-size", "x"], "--block-size is 'x'; it must be a whole number"),
    "block size float": (["serve", "M", "--block-size", "1.5"], "--block-size is '1.5'; it must be a whole number"),
    "no decode worker": (["serve", "M", "--decode", "0"], "--decode is 0; it must be a whole number from 1"),
    "negative prefill": (["serve", "M", "--prefill=-1"], "--prefill is -1; it must be a whole number from 0"),
    "device": (["serve", "M", "--device", "tpu"], "--device is 'tpu'; it must be one of cpu, cuda"),
    "dtype": (["serve", "M", "--dtype", "int4"], "--dtype is 'int4'; it must be one of auto, float32"),
    "half on a CPU": (["serve", "M", "--dtype", "float16"], "--dtype is float16; with device cpu"),
    "port": (["serve", "M", "--grpc", "127.0.0.1:70000"], "--grpc has port 70000; it must be from 0 to 65535"),
    "no port": (["serve", "M", "--grpc", "localhost"], "--grpc is 'localhost'; it must be HOST:PORT"),
    "same port": (["serve", "M", "--http", "127.0.0.1:50051"], "--grpc and http are both"),
    "everybody": (["serve", "M", "--http", "0.0.0.0:0"], "--http is 0.0.0.0:0; beyond this machine it must be allowed "
                  "by --insecure-bind"),
    "NaN": (["serve", "M", "--default-deadline-s", "nan"], "--default-deadline-s is nan; it must be a number above 0"),
    "words": (["serve", "M", "--drain-timeout-s", "5 minutes"], "--drain-timeout-s is '5 minutes'; it must be"),
    "utilization": (["serve", "M", "--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization is 1.5; it must be"),
    "kv bytes": (["serve", "M", "--kv-bytes", "lots"], "--kv-bytes is 'lots'; it must be a whole number"),
    "empty key": (["serve", "M", "--api-key", ""], "--api-key is hidden; it must be printable ASCII"),
    "collector without a port": (["serve", "M", "--otlp-endpoint", "http://collector"],
                                 "--otlp-endpoint is 'http://collector'; it must be http(s)://HOST:PORT"),
    "collector's path": (["serve", "M", "--otlp-endpoint", "http://c:4318/v1/traces"],
                         "--otlp-endpoint is 'http://c:4318/v1/traces'; it must be http(s)://HOST:PORT"),
    "config missing": (["serve", "M", "--config", "/nonexistent.yaml"], "--config /nonexistent.yaml: cannot be read: "),
    "config a directory": (["serve", "M", "--config", "/"], "--config /: cannot be read"),
    "plan missing": (["serve", "M", "--plan", "/nonexistent.json"], "--plan /nonexistent.json: cannot be read: "),
    "mock no JSON": (["serve", "--mock", "pyproject.toml"], "--mock is pyproject.toml; not JSON: Expecting value"),
    "kv bytes huge": (["serve", "M", "--kv-bytes", "1e400"], "it must be a whole number from 1 to 1125899906842624"),
    "mock missing": (["serve", "--mock", "/nonexistent.json"], "--mock is /nonexistent.json; No such file"),
    "generate without prompt": (["generate"], "the following arguments are required: PROMPT"),
    "generate no time": (["generate", "--timeout-s", "nan", "hi"], "--timeout-s: 'nan' must be a number above 0"),
    "generate no tokens": (["generate", "--max-tokens=-1", "hi"], "--max-tokens: '-1' must be a whole number, at"),
    "generate too many": (["generate", "--top-k", "9" * 20, "hi"], "must be a whole number, at least -1, at most 2147"),
    "generate seed": (["generate", "--seed", "9" * 5000, "hi"], "must be a whole number, at least 0, at most 10000"),
    "generate no text": (["generate", "\udcff"], "PROMPT is not UTF-8 text"),
    "a key that no header takes": (["generate", "--api-key", "a\nb", "hi"], "--api-key: it must be printable ASCII"),
    "generate bad server": (["generate", "--server", "x", "hi"], "--server is 'x'; it must be HOST:PORT"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_exit_with_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on standard error: what, its value, what is allowed."""
    arguments, message = BAD_ARGUMENTS[name]
    assert call(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_everything_wrong_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each problem."""
    assert call(["serve", "M", "--decode", "0", "--block-size", "3", "--grpc", "x"]) == 2
    assert [line.split()[3] for line in capsys.readouterr().err.splitlines()] == ["--decode", "--grpc", "--block-size"]


BAD_YAML = {
    "empty": (b"", "is empty"),
    "binary": (b"\x00\xff\x00", "is not UTF-8 text"),
    "control characters": (b"a: \x01", "is not YAML"),
    "byte order mark": (b"\xef\xbb\xbfprefill: 1", "byte order mark"),
    "list": (b"- 1", "is not a mapping"),
    "typo": (b"blok-size: 16", "blok-size is not a setting; did you mean block-size?"),
    "part": (b"worker: {}", "worker is not a setting"),
    "alias": (b"a: &a [x]\nb: *a", ":2: aliases are not allowed"),
    "tag": (b"prefill: !!python/object/apply:os.system ['true']", ":1: could not determine a constructor"),
    "twice": (b"prefill: 1\nprefill: 2", "a key appears twice"),
    "twice, spelled twice": (b"block-size: 1\nblock_size: 2", "block_size appears twice"),
    "syntax": (b"prefill: [", ": "),
    "too deep": (b"[" * 50_000, "nested too deeply"),
    "value": (b"prefill: many", "prefill is 'many'; it must be a whole number from 0"),
    "NaN": (b"default-deadline-s: .nan", "default-deadline-s is nan; it must be a number above 0"),
    "boolean": (b"decode: true", "decode is True; it must be a whole number"),
    "classes": (b"slo-classes: [1]", "slo-classes must map names"),
    "class value": (b"slo-classes: {a: {ttft-s: -1}}", "slo_classes.a.ttft_s is -1; it must be a number above 0"),
    "class key": (b"slo-classes: {a: {tttf: 1}}", "slo-classes.a.tttf is not a setting"),
    "tenants": (b"tenants: x", "tenants must be a list of names"),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_a_bad_config_file_exits_with_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is named, and nothing in it is executed."""
    content, message = BAD_YAML[name]
    file = tmp_path / "f.yaml"
    file.write_bytes(content)
    assert call(["serve", "M", "--config", str(file)]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    if name != "class value":
        assert str(file) in printed


def test_the_command_line_wins_over_the_file_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every setting of the file arrives in its part of the configuration."""
    file = tmp_path / "f.yaml"
    file.write_text(
        "model: from-file\nprefill: 3\nblock-size: 32\nkv-bytes: 2G\napi-key: file-key\n"
        "slo-classes: {chat: {ttft-s: 0.5}}\ntenants: [a, b]\nenable-prefix-caching: false\n"
        "tenant-keys: {a: [k1, k2], b: k3}\n"
    )
    monkeypatch.setenv("PDSERVE_API_KEY", "env-key")
    config = serve_config({"prefill": "2", "kv_bytes": "64MiB"}, file)
    assert (config.model, config.prefill, config.worker.block_size) == ("from-file", 2, 32)
    assert config.worker.kv_bytes == 64 << 20
    assert (config.router.api_key, config.router.tenants) == (("file-key",), ("a", "b"))
    assert [(one.tenant, one.key) for one in config.router.tenant_keys] == [("a", "k1"), ("a", "k2"), ("b", "k3")]
    several = serve_config({"model": "m", "api_key": ["one", "two"], "allowed_origins": ["*"]}, file).router
    assert (several.api_key, several.allowed_origins) == (("one", "two"), ("*",))
    assert (config.router.slo_classes[0].name, config.router.slo_classes[0].ttft_s) == ("chat", 0.5)
    assert not config.worker.enable_prefix_caching
    assert serve_config({"model": "m"}, None).router.api_key == ("env-key",)
    assert "file-key" not in repr(config) and "k1" not in repr(config)


def test_a_plan_is_over_the_config_file_and_under_the_flags(tmp_path: Path) -> None:
    file, plan = tmp_path / "c.yaml", tmp_path / "plan.json"
    file.write_text("prefill: 1\ndecode: 1\nblock-size: 32\n")
    plan.write_text('{"prefill": 3, "decode": 2, "max-num-batched-tokens": 256}')
    config = serve_config({"model": "m", "decode": "4"}, file, plan)
    assert (config.prefill, config.decode) == (3, 4)
    assert (config.worker.block_size, config.worker.max_num_batched_tokens) == (32, 256)
    plan.write_text('{"prefil": 3}')
    with pytest.raises(ConfigError, match="is no plan, it has 'prefil'; it must be what `pdserve plan -o` wrote"):
        serve_config({"model": "m"}, None, plan)
    plan.write_text('{"prefil": 3, "decode": 1}')
    with pytest.raises(ConfigError, match="did you mean prefill"):
        serve_config({"model": "m"}, None, plan)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"base_s": 1, "per_prefill_token_s": 1}', "is a profile, no plan: `pdserve plan --profile "),
        ("prefill: 2", "is not JSON (Expecting value: line 1 column 1 (char 0)); it must be what `pdserve plan -o` wr"),
        ("", "is not JSON ("),
        ("{}", "is '{}'; it must be what"),
        ('[{"pp_cross": 1}]', "is '[{\"pp_cross\": 1}]'; it must be what"),
        ('{"a": {"pdserve_plan": 1}}', "is no plan, it has 'a'; it must be what"),
        ('{"pdserve_plan": 99, "serve": {}}', "pdserve_plan is 99; this version reads 1"),
        ('{"pdserve_plan": 1}', "the plan has no placement: none that was looked at meets its targets"),
        ('{"prefill": "x"}', "prefill is 'x'; it must be a whole number from 0"),
    ],
)
def test_what_is_no_plan_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    plan = tmp_path / "p.json"
    plan.write_text(text)
    with pytest.raises(ConfigError) as caught:
        serve_config({"model": "m"}, None, plan)
    [problem] = caught.value.problems
    assert problem.startswith(f"--plan {plan}: {told}")


def test_every_flag_is_a_key_of_the_file(tmp_path: Path) -> None:
    """The same names in both, and no setting is known twice."""
    file = tmp_path / "f.yaml"
    file.write_text(
        "".join(
            f"{name.replace('_', '-')}: 1\n"
            for name in sorted(known_settings() - {"slo_classes", "tenants", "tenant_keys"})
        )
    )
    assert set(read_config_file(file, known_settings())) == known_settings() - {"slo_classes", "tenants", "tenant_keys"}
    with pytest.raises(ConfigError):
        read_config_file(file, known_settings() - {"prefill"})


def test_a_port_in_use_exits_with_3(model_files: ModelFiles, capsys: pytest.CaptureFixture[str]) -> None:
    """Found before a model is loaded; the flag is named."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert call(["serve", str(model_files.path), "--grpc", address, "--http", "127.0.0.1:0"]) == 3
    assert f"--grpc is {address}; in use" in capsys.readouterr().err


@pytest.mark.skipif(any(name.startswith("nvidia") for name in os.listdir("/dev")), reason="a GPU is here")
@pytest.mark.parametrize("flags", [["--device", "cuda"], ["--kv-transport", "nccl"]])
def test_what_needs_a_gpu_exits_with_3(
    model_files: ModelFiles, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the remedy in the line."""
    assert call(["serve", str(model_files.path), *flags]) == 3
    assert flags[0] in capsys.readouterr().err


def test_more_kv_memory_than_the_machine_has_exits_with_3(
    model_files: ModelFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a worker runs the machine out of memory."""
    assert call(["serve", str(model_files.path), "--kv-bytes", "900T"]) == 3
    assert "--kv-bytes is 989,560,464,998,400 for each of 2 workers" in capsys.readouterr().err


def test_kv_memory_without_room_for_one_request_is_refused_before_anything_is_loaded(
    model_files: ModelFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the shapes of the weights; a mock engine's KV has its own."""
    kv = {f"model.layers.0.self_attn.{which}_proj.weight": ("F32", [4, 8]) for which in "kv"}
    model_files.weights({"model.embed_tokens.weight": ("F32", [16, 8]), **kv})
    assert call(["serve", str(model_files.path), "--kv-bytes", "2079"]) == 2
    said = capsys.readouterr().err
    assert (
        "--kv-bytes: KV memory is 2,079 bytes, room for 3 blocks of 16 tokens; 64 tokens need 4 blocks, 2,080" in said
    )
    assert "starting" not in said
    (model_files.path / "p.json").write_text(json.dumps(dict.fromkeys(PROFILE, 1e-3)))
    mock = ["serve", str(model_files.path), "--mock", str(model_files.path / "p.json")]
    assert call([*mock, "--kv-bytes", "4127"]) == 2
    assert "64 tokens need 4 blocks, 4,128 bytes; give more, or lower --max-model-len" in capsys.readouterr().err


def test_a_bad_model_exits_with_4(model_files: ModelFiles, capsys: pytest.CaptureFixture[str]) -> None:
    """A broken directory, one that is missing, and an id that the hub cannot have."""
    (model_files.path / "config.json").unlink()
    for model in (str(model_files.path), "/nonexistent/model", "./nothing/here"):
        assert call(["serve", model]) == 4
        assert capsys.readouterr().err.count("\n") == 1


def test_a_context_longer_than_the_models_exits_with_2(
    model_files: ModelFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's own length is named."""
    assert call(["serve", str(model_files.path), "--max-model-len", "65"]) == 2
    assert "--max-model-len is 65; it must be at most the model's, 64" in capsys.readouterr().err


def test_a_ready_file_that_cannot_be_written_exits_with_6(
    model_files: ModelFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found before a model is loaded."""
    arguments = ["serve", str(model_files.path), "--ready-file", "/nonexistent/f", "--grpc", "127.0.0.1:0"]
    assert call([*arguments, "--http", "127.0.0.1:0"]) == 6
    assert "--ready-file is /nonexistent/f" in capsys.readouterr().err


def test_the_ready_file_of_a_cluster_that_was_killed_goes_before_anything_can_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is wrong with the start; the file of a cluster that runs, and what is no ready file, stay."""
    file, settings = tmp_path / "ready.json", tmp_path / "c.yaml"
    settings.write_text(f"ready-file: {file}\n")

    def left_behind(pid: int) -> bool:
        worker = ReadyWorker("decode-0", "decode", pid, "cpu")
        write_ready_file(file, ReadyInfo("127.0.0.1:1", None, "m", [worker]))
        assert call(["serve", "M", "--ready-file", str(file), "--block-size", "3"]) == 2
        gone = not file.exists()
        write_ready_file(file, ReadyInfo("127.0.0.1:1", None, "m", [worker]))
        assert call(["serve", "/no/model", "--config", str(settings)]) == 4
        assert gone is not file.exists()
        return not gone

    assert not left_behind(1 << 22), "no process has this number"
    assert not left_behind(os.getpid()), "another program's process has it now"
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()", "-m", "decode_worker"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE) as worker:
        assert left_behind(worker.pid)
        worker.kill()
    file.write_text("mine")
    assert call(["serve", "M", "--ready-file", str(file), "--block-size", "3"]) == 2 and file.read_text() == "mine"


def test_looking_whether_an_output_can_be_written_leaves_things_as_they_are(tmp_path: Path) -> None:
    """Nothing new, nothing lost."""
    old = tmp_path / "old.json"
    old.write_text("mine")
    for path in (old, tmp_path / "new.json"):
        check_output(path)
    assert [one.name for one in tmp_path.iterdir()] == ["old.json"] and old.read_text() == "mine"
    with pytest.raises(StartError, match="--json is /proc/x; No such file"):
        check_output(Path("/proc/x"), "--json")


def test_nobody_there_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    """`generate` tells which server it could not reach."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        assert call(["generate", "--server", address, "hi"]) == 1
    assert f"--server is {address}; it cannot serve" in capsys.readouterr().err


def test_help_is_light() -> None:
    """No help text pays for torch, transformers, Ray or the HTTP stack."""
    code = (
        "import sys\nfrom deploy.cli import main\n"
        "for words in (['--help'], ['--version'], ['serve', '--help'], ['generate', '--help'], ['demo', '--help'],\n"
        "              ['make-model', '--help']):\n"
        "    try: code = main(words)\n"
        "    except SystemExit as ended: code = ended.code or 0\n"
        "    assert code == 0, words\n"
        "heavy = [name for name in ('torch', 'transformers', 'ray', 'starlette') if name in sys.modules]\n"
        "print('heavy:', heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("heavy: []\n")
    for word in ("serve", "--prefill", "--gpu-memory-utilization", "--no-enable-prefix-caching", "pdserve 0."):
        assert word in done.stdout


def test_the_start_line_of_a_worker_survives_json(tmp_path: Path) -> None:
    """And nothing but what was written is taken."""
    from pdserve.config import WorkerConfig, WorkerStart

    start = WorkerStart("decode-0", "decode", "/m", "cpu", "s", "127.0.0.1:0", WorkerConfig(threads=2), (0, 3))
    assert WorkerStart.from_json(start.to_json()) == start
    assert "'s'" not in repr(start)
    data = json.loads(start.to_json())
    for bad in ("{", "[]", json.dumps({**data, "x": 1}), json.dumps({**data, "config": {"x": 1}}),
                json.dumps({**data, "processors": ["0"]}), json.dumps({**data, "processors": 0}),
                json.dumps({**data, "config": {"block_size": 3}}), json.dumps({**data, "role": 1})):  # fmt: skip
        with pytest.raises(ConfigError):
            WorkerStart.from_json(bad)


def test_worker_settings_become_flags_again() -> None:
    words = ["--dtype", "bfloat16", "--threads", "2", "--no-enable-prefix-caching", "--kv-bytes", "64M"]
    parser = argparse.ArgumentParser()
    add_worker_settings(parser)
    given = vars(parser.parse_args(words))
    again = worker_flags({"output": "p.json", **given})
    assert sorted(again) == sorted(words)
    assert vars(parser.parse_args(again)) == given
