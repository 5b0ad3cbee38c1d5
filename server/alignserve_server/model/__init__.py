"""The model: preprocessing, encoders and zero-shot classification. Knows no protobuf and no queue."""

import os

# Threads of an OpenMP team wait for each other by spinning. GNU's do so for milliseconds, and while one of
# them is driven off its core, the others burn time that it needs, at every barrier. A tenth of a millisecond
# still spans a forward's gaps between two parallel parts. It is read once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
