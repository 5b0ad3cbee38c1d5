"""Controls a fake server in another process: each line of JSON calls a method of `FakeServer`."""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
from google.protobuf import json_format

from alignserve._fake.state import ReceivedCall

_METHODS = frozenset(
    {
        "break_stream",
        "delay_next",
        "embedding_of",
        "fail_input",
        "fail_next",
        "hold",
        "release",
        "reset",
        "restart",
        "reverse_answers",
        "set_embedding",
        "set_ready",
        "set_scores",
        "wait_for_received",
    }
)


def answers(lines: Iterable[str], fake: Any) -> Iterator[str]:
    """Yields the answer to each line; see `python -m alignserve.testing --help`.

    Args:
        lines: Such as `{"call": "fail_next", "arguments": {"code": "UNAVAILABLE", "times": 2}}`.
        fake: The `FakeServer`. Any: it imports this package.
    """
    for line in lines:
        if line.strip():
            yield json.dumps(_answer(line, fake))


def _answer(line: str, fake: Any) -> dict[str, Any]:
    try:
        return {"ok": _result(json.loads(line), fake)}
    except (LookupError, OSError, TypeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _result(command: dict[str, Any], fake: Any) -> object:
    name, arguments = command["call"], command.get("arguments") or {}
    if name == "received":
        return [_received(call) for call in list(fake.received)]
    if name not in _METHODS:
        raise LookupError(f"{name} is unknown; call received, {', '.join(sorted(_METHODS))}")
    method: Callable[..., Any] = getattr(fake, name)
    known = inspect.signature(method).parameters
    if unknown := [argument for argument in arguments if argument not in known]:
        raise TypeError(f"{name} has no argument {unknown[0]}; it has {', '.join(known) or 'none'}")
    found = method(**{argument: _value(argument, value) for argument, value in arguments.items()})
    return None if found is None else found.tolist()  # only `embedding_of` returns something


def _value(argument: str, value: Any) -> object:
    if argument == "code":
        if value not in grpc.StatusCode.__members__:
            raise ValueError(f"{value!r} is not a gRPC status code, such as UNAVAILABLE")
        return grpc.StatusCode[value]
    if isinstance(value, dict) and set(value) == {"base64"}:
        return base64.b64decode(value["base64"], validate=True)
    return value


def _received(call: ReceivedCall) -> dict[str, Any]:
    return {
        "method": call.method,
        "request": json_format.MessageToDict(call.request, preserving_proto_field_name=True),
        "metadata": {key: _text(value) for key, value in call.metadata.items()},
        "remaining_seconds": call.remaining_seconds,
        "at_seconds": call.at_seconds,
    }


def _text(value: str | bytes) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
