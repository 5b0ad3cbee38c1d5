"""Disables OpenVINO's telemetry, which reports usage over the network from a forked process."""

from __future__ import annotations

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's way to block an import
import openvino as ov

__all__ = ["ov"]
