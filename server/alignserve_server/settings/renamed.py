"""Settings that had another name, or that no longer exist, and what to use instead.

Each stops the start: a setting that is silently ignored could leave a server open, or less exact than wanted.
"""

from __future__ import annotations

import re

from alignserve_server.settings.problems import Problem
from alignserve_server.settings.sources import Given

RENAMED = {
    "access_log_ratio": "access_log_sample_ratio",
    "cache_folder": "cache_dir",
    "calibration_folder": "calibration_dir",
    "image_formats": "extra_image_formats",
    "keys_file": "api_keys_file",
    "max_queue_delay_ms": "max_queue_delay_seconds",
    "min_cosine": "min_cosine_similarity",
}

REMOVED = {
    "metrics": "to serve no metrics, set {metrics_listen} to none",
    "warmup": "the model always warms up; to use batch sizes as given, set {max_image_batch_size} and "
    "{max_text_batch_size}",
    "watchdog_interval_seconds": "the interval is a tenth of {stall_timeout_seconds}, at most 1 s",
}

_SETTING = re.compile(r"{(\w+)}")
_NEW_UNITS = {"max_queue_delay_ms": ", in seconds"}


def outdated(name: str, given: Given) -> Problem | None:
    """Returns the problem of a name that is no longer used, with its replacement as flag, variable or line.

    The value is not shown: it may be a secret.
    """
    if name in RENAMED:
        text = f"renamed; use {given.named(RENAMED[name])}{_NEW_UNITS.get(name, '')}"
    elif name in REMOVED:
        text = f"removed; {_SETTING.sub(lambda match: given.named(match[1]), REMOVED[name])}"
    else:
        return None
    return Problem((name,), f"{given.place}: {text}")
