"""alignserve-server without a garbage collector: `python -m tests.hostile.uncollected FLAG...`.

What only the collector would free stays, so that it can be seen after a few calls.
"""

from __future__ import annotations

import gc

from alignserve_server.cli.main import main

if __name__ == "__main__":
    gc.disable()
    main()
