"""The model: preprocessing, encoders and zero-shot classification. Knows no protobuf and no queue."""

import os

# Where a lane has several threads (threads_per_lane), they meet at barriers, and there GNU's OpenMP spins for
# milliseconds: while something has driven one of them off its core, the others burn time that it needs. So
# they sleep after some 25 µs. OpenMP reads this once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
