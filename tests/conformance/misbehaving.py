"""A driver that does what no driver may, for tests of the harness: `python misbehaving.py FAULT`."""

from __future__ import annotations

import json
import sys
import time

HELLO = {"language": "Misbehaving", "library": "none", "versions": {"fault": "1"}}


def main() -> None:
    """Answers `hello`, `connect` and `close` as it should, and other requests with the fault."""
    fault = sys.argv[1]
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "hello" and fault != "silent":
            write({"id": request["id"], "ok": HELLO})
        elif request["op"] in ("connect", "close"):
            write({"id": request["id"], "ok": {}})
        else:
            misbehave(fault, request["id"])
    if fault == "stays":
        time.sleep(600)
    if fault == "leaves":
        sys.exit(7)


def misbehave(fault: str, number: int) -> None:
    """Answers a request wrongly."""
    if fault in ("silent", "hangs"):
        print("waits forever", file=sys.stderr, flush=True)
        time.sleep(600)
    elif fault == "dies":
        print("out of luck", file=sys.stderr, flush=True)
        sys.exit(3)
    elif fault == "garbage":
        print("Hello, world", flush=True)
    elif fault == "other id":
        write({"id": number + 1, "ok": {}})
    elif fault == "two outcomes":
        write({"id": number, "ok": {}, "error": {}})
    elif fault == "unsupported":
        write({"id": number, "unsupported": "no such thing"})
    elif fault == "wrong":
        write({"id": number, "ok": {"embeddings": [[0.0, 1.0]]}})
    else:
        write({"id": number, "ok": {"embeddings": [[1.0, 0.0]]}})


def write(message: object) -> None:
    """Writes a line."""
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
