"""Keeps gRPC's core from writing lines of its own to standard error; importing this is all it takes.

It reports each failed handshake there. What it says is in the errors as well, and the environment variable
GRPC_VERBOSITY brings the lines back. gRPC reads it as it is imported, so this comes first.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
