"""Virtual environments for the servers that `make bench` compares with, one each: their pins conflict.

python -m tests.load.peers.environments [NAME …]

Each also sees the packages of this environment, after its own, so torch is not installed again. A server that
cannot be installed is left out of the benchmarks, which state the reason.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from contextlib import ExitStack
from importlib.metadata import distributions, version
from pathlib import Path

_FOLDER = Path(os.environ.get("PEERS_FOLDER") or Path(sys.prefix) / "peers")
_REQUIREMENTS = {
    "bentoml": ["bentoml==1.4.40"],
    "infinity": ["infinity-emb[server,torch,optimum]==0.0.78", "aiohttp>=3.12"],  # which it needs for images
    "litserve": ["litserve==0.2.19"],
    "mosec": ["mosec==0.9.8"],
    "ray": ["ray[serve]==2.60.0"],
    "triton": ["nvidia-pytriton==0.7.0"],  # includes Triton's server
}
_EMBEDDED = {"triton"}  # its processes load libpython


def program(name: str, of: str) -> str:
    """Returns the path of a program in a server's environment, such as `python`."""
    return str(_FOLDER / of / "bin" / name)


def absence(name: str) -> str | None:
    """Returns why a server is not installed, or `None` if it is."""
    if _failure(name).is_file():
        return _failure(name).read_text()
    return None if Path(program("python", of=name)).exists() else "`make peers` installs it"


def versions() -> list[str]:
    """Returns the names and versions of the installed servers, as in `bentoml 1.4.40`."""
    packages = {name: re.split(r"[\[=]", wanted[0])[0] for name, wanted in _REQUIREMENTS.items()}
    return [
        f"{package} {found.version}"
        for name, package in packages.items()
        for found in distributions(name=package, path=[_site_packages(name)])
    ]


def install(name: str) -> None:
    """Makes the environment of a server, after removing an older one."""
    folder = _FOLDER / name
    _failure(name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    with ExitStack() as unless_installed:  # even if interrupted: `absence` only looks for a Python
        unless_installed.callback(shutil.rmtree, folder, ignore_errors=True)
        python = _python_with_library() if name in _EMBEDDED else sys.executable
        subprocess.run((python, "-m", "venv", "--without-pip", folder), check=True)
        Path(_site_packages(name), "shared.pth").write_text(sysconfig.get_path("purelib"))
        constraints = folder / "constraints.txt"
        constraints.write_text(f"torch=={version('torch')}")
        done = _pip_install(name, "--constraint", str(constraints), *_REQUIREMENTS[name])
        if done.returncode:
            last_line = done.stderr.strip().rpartition("\n")[2]
            _failure(name).write_text(last_line)
        else:
            unless_installed.pop_all()


def main(names: list[str]) -> None:
    """Installs the servers, by default all of them, and prints which failed."""
    for name in names or _REQUIREMENTS:
        print(f"Installing {name} into {_FOLDER / name} ...", flush=True)
        install(name)
        if reason := absence(name):
            print(f"{name} cannot be installed: {reason}")


def _pip_install(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", program("python", of=name))
    command = (*pip, "install", "--quiet", *arguments)
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)


def _failure(name: str) -> Path:
    return _FOLDER / f"{name}.failed"


def _python_with_library() -> str:
    """Returns a Python of this version with a shared library: this one or the system's."""
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        return sys.executable
    name = "python{}.{}".format(*sys.version_info)
    return shutil.which(name, path="/usr/bin:/usr/local/bin") or sys.executable


def _site_packages(name: str) -> str:
    folder = str(_FOLDER / name)
    return sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder})


if __name__ == "__main__":
    main(sys.argv[1:])
