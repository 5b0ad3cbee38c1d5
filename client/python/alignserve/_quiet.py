"""Keeps gRPC's core from logging to standard error; importing this module is enough.

gRPC logs each failed handshake there, although the errors say the same. The environment variable
GRPC_VERBOSITY turns the log on again. gRPC reads it when it is imported, so this module must come first.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
