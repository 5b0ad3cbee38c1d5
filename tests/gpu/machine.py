"""The machine of a check: with or without a GPU, with the project's environment or bare."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = ("alignserve", "alignserve-server")
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}


def gpu() -> str | None:
    """Returns name, driver version and memory of the NVIDIA GPUs; None if there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return "; ".join(answer.stdout.splitlines()) if answer.returncode == 0 and answer.stdout else None


def heading(device: str | None) -> dict[str, str]:
    """Returns the facts that a reader of figures needs, by name; torch's version is in the steps' tables."""
    return {
        "device, driver, memory": device or "none",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": str(len(os.sched_getaffinity(0))),
        "command": f"python -m tests.gpu {shlex.join(sys.argv[1:])}",
    }


def environment(work: Path, site: Path | None) -> dict[str, str]:
    """Returns every step's environment: the source tree and the wheels' packages in the path, no network."""
    folders = [ROOT / "server", ROOT / "client" / "python", ROOT, *([site] if site else [])]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    return {
        **os.environ,
        **_OFFLINE,
        "PYTHONPATH": path.rstrip(os.pathsep),
        "XDG_CACHE_HOME": str(work / "cache"),
        "TRITON_CACHE_DIR": str(work / "cache" / "triton"),  # of all steps: they compile the same kernels
    }


def install(wheels: Path, site: Path) -> None:
    """Installs a folder of wheels into `site`, with metadata that makes the source tree appear installed.

    A wheel that does not fit, such as that of another version of Python, is left out with a message: the
    machine may have the package, and most steps need few of them.
    """
    shutil.rmtree(site, ignore_errors=True)
    found = sorted(wheels.glob("*.whl"))
    if _installed(found, site):
        for wheel in found:
            if message := _installed([wheel], site):
                print(f"cannot install {wheel.name}: {message[-500:]}", flush=True)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    for name in DISTRIBUTIONS:  # the server only reads its version from them
        metadata = site / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")


def _installed(wheels: Sequence[Path], site: Path) -> str:
    """Installs wheels into `site`; returns why that failed, or an empty string."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--target", str(site)]
    answer = subprocess.run([*command, *map(str, wheels)], capture_output=True, text=True, check=False)
    return answer.stderr if answer.returncode else ""
