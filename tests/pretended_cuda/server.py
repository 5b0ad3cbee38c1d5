"""`python -m tests.pretended_cuda.server`: alignserve-server with simulated CUDA, for `--device cuda`."""

from __future__ import annotations

from alignserve_server.cli.main import main

from tests.pretended_cuda import pretended_cuda

if __name__ == "__main__":
    with pretended_cuda():
        main()
