"""A picture process with the faults that a decoder can have: a program, named by the first bytes of an image."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from alignserve.curate import picture_child

_answer = picture_child._answer
_is_damaged = False


def _faulty(content: bytes, job: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    global _is_damaged
    if _is_damaged or content.startswith(b"crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if content.startswith(b"kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if content.startswith(b"exit"):
        os._exit(7)
    if content.startswith(b"damage"):
        _is_damaged = True
    if content.startswith(b"spin"):
        while True:
            pass
    if content.startswith(b"sleep"):
        time.sleep(1000)
    if content.startswith(b"stop"):
        os.kill(os.getpid(), signal.SIGSTOP)
    if content.startswith(b"memory"):
        bytearray(settings["max_memory_bytes"] + (1 << 20))
    if content.startswith(b"lie"):
        return {"width": "<script>", "height": 1}
    if content.startswith(b"reason"):
        return {"failure": "<script>", "message": ""}
    if content.startswith(b"flood"):
        return {"width": "x" * (2 << 20)}
    return _answer(content, job, settings)


picture_child._answer = _faulty
picture_child.main(int(sys.argv[1]), json.loads(sys.argv[2]))
