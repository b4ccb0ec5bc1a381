"""`pdserve serve --device cuda` as a user starts it, one prefill and one decode worker, and one completion by gRPC.

    python -m bench.gpu_serve [--device cuda]

The model is small and random, with a tokenizer. Skips, saying so, where the front door's libraries are not installed.
NOT YET RUN ON A GPU; `--device cpu` runs the same on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from deploy.models.make_model import make_model
from deploy.models.model_spec import ModelSpec

NEEDED = ("grpc_health", "grpc_reflection", "grpc_status")
START_S = 100.0
SPEC = ModelSpec(arch="llama", num_layers=4, hidden_size=512, head_dim=64, max_position_embeddings=2048)


def main(arguments: list[str] | None = None) -> int:
    """Start, ask, stop; 0 when the server answered and ended with 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    args = parser.parse_args(arguments)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"bench.gpu_serve: skipped, {', '.join(missing)} not installed")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model, ready = Path(folder, "model"), Path(folder, "ready.json")
        make_model(model, SPEC)
        command = [
            sys.executable, "-m", "deploy.cli", "serve", str(model), "--device", args.device,
            "--ready-file", str(ready), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0",
        ]  # fmt: skip
        server = subprocess.Popen(command)
        try:
            if not _wait(server, ready):
                print(f"bench.gpu_serve: not ready within {START_S:g} s, or ended")
                return 1
            said = json.loads(ready.read_text())
            print(json.dumps(said["workers"]))
            ask = [sys.executable, "-m", "deploy.cli", "generate", "--server", said["grpc"], "Once upon a time"]
            code = subprocess.run(ask, timeout=60, check=False).returncode
        finally:
            server.send_signal(signal.SIGINT)
            ended = server.wait(30)
    print(f"generate ended with {code}, serve with {ended}")
    return 0 if code == ended == 0 else 1


def _wait(server: subprocess.Popen[bytes], ready: Path) -> bool:
    end = time.monotonic() + START_S
    while not ready.exists() and server.poll() is None and time.monotonic() < end:
        time.sleep(0.1)  # the file is renamed into place: there is no event to wait for
    return ready.exists()


if __name__ == "__main__":
    sys.exit(main())
