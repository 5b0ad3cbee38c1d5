"""The command `alignserve bench`: measures a server under load.

`alignserve._bench.runner.measure` is its core, for any unary gRPC method.
"""

from alignserve._bench.arguments import add_arguments
from alignserve._bench.command import run

__all__ = ["add_arguments", "run"]
