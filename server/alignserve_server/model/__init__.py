"""The model: preprocessing, encoders and zero-shot classification, independent of protobuf and queues."""

import os

# With several threads per lane (threads_per_lane), GNU's OpenMP spins for milliseconds at each barrier: if
# one thread has lost its core, the others burn time that it needs. This makes them sleep after some 25 µs.
# OpenMP reads the variable once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
