"""The command `python -m alignserve.testing`: a fake server for tests in any language."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from alignserve._fake.control import answers

_DESCRIPTION = """\
Runs a fake alignserve server, for tests in any language: real gRPC, no model. The same input always has the
same embedding. The server ends when its standard input does.

The first line of output is {"target": "127.0.0.1:PORT"}. Each line of input calls a method of
alignserve.testing.FakeServer, and each line of output answers one:

  {"call": "fail_next", "arguments": {"code": "UNAVAILABLE", "reason": "MODEL_LOADING",
                                      "retry_delay_seconds": 0.2, "times": 2, "method": "EmbedText"}}
  {"ok": null}
  {"call": "fail_input", "arguments": {"content": {"base64": "aGVsbG8="}}}
  {"ok": null}
  {"call": "wait_for_received", "arguments": {"count": 3, "timeout_seconds": 5}}
  {"ok": null}
  {"call": "received"}
  {"ok": [{"method": "EmbedText", "request": {"texts": ["a cat"]}, "metadata": {...},
           "remaining_seconds": 29.9, "at_seconds": 1234.5}, ...]}
  {"call": "nonsense"}
  {"error": "LookupError: nonsense is unknown; ..."}

Calls: fail_next, fail_input, delay_next, break_stream, set_embedding, set_scores, embedding_of, set_ready,
hold, release, reverse_answers, restart, reset, received and wait_for_received, with the arguments that
https://github.com/alignserve/alignserve/blob/main/client/README.md#testing-your-code describes. A code is the
name of a gRPC status. A content is a text, or {"base64": ...} with the bytes of an image file.
"""


def main(fake_server: Callable[..., Any]) -> int:
    """Runs the command and returns its exit code.

    Args:
        fake_server: The class `FakeServer`, which imports this package.
    """
    arguments = vars(_parser().parse_args())
    try:
        fake = fake_server(**arguments)
    except (OSError, RuntimeError, ValueError) as error:  # gRPC raises RuntimeError for a port in use
        print(f"alignserve.testing: {error}", file=sys.stderr)
        return 1
    with fake:
        _print(json.dumps({"target": fake.target}))
        try:
            for answer in answers(sys.stdin, fake):
                _print(answer)
        except KeyboardInterrupt:
            return 130
    return 0


def _print(line: str) -> None:
    # Flushed: the other process waits for it.
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alignserve.testing",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def option(flag: str, metavar: str, help_text: str, **more: Any) -> None:
        parser.add_argument(flag, metavar=metavar, help=help_text, default=argparse.SUPPRESS, **more)

    option("--port", "PORT", "port on 127.0.0.1 (default: a free one)", type=int)
    option("--embedding-dimension", "N", "elements in an embedding (default: 64)", type=int)
    option("--max-client-batch-size", "N", "items in one request (default: 64)", type=int)
    option("--max-text-tokens", "N", "tokens in a text, two more than words (default: 64)", type=int)
    option("--max-request-bytes", "N", "size of a request (default: 16777216)", type=int)
    option("--api-key", "KEY", "an accepted key; may be repeated", action="append", dest="api_keys")
    option("--tls-certificate", "FILE", "PEM file with the server's certificate; turns TLS on")
    option("--tls-key", "FILE", "PEM file with its private key")
    option("--tls-client-ca", "FILE", "PEM file with the authorities of client certificates, then required")
    option("--max-connection-age-seconds", "S", "age at which connections are closed (GOAWAY)", type=float)
    parser.add_argument(
        "--checks-images",
        action="store_true",
        help="refuse images that do not start like JPEG or PNG",
    )
    return parser
