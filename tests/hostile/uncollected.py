"""alignserve-server without a garbage collector: `python -m tests.hostile.uncollected FLAG...`.

Objects that only the collector would free remain, so that a few calls reveal them.
"""

from __future__ import annotations

import gc

from alignserve_server.cli.main import main

if __name__ == "__main__":
    gc.disable()
    main()
