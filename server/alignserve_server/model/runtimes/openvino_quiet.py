"""OpenVINO without its reporter, which tells its makers of its use, over the network and from a fork."""

from __future__ import annotations

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's way to block an import
import openvino as ov

__all__ = ["ov"]
