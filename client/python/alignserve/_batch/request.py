"""Reads a line of a batch: a JSON object with `custom_id`, `method`, `url` and `body`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from alignserve._batch.embeddings import Embeddings, read_embeddings
from alignserve._batch.fields import Fields, kind_of, shown
from alignserve._batch.refusals import LineError, Refusal
from alignserve._results import ModelInfo

_URLS = ("/v1/embeddings", "/embeddings")
_MISSING = "missing_required_parameter"
# A surrogate without its other half has no UTF-8 form. Escapes are the only way to write one.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_FIRST_FIELD = re.compile(rb'\s*\{\s*"custom_id"\s*:\s*("(?:[^"\\]|\\.){0,4096}")')


@dataclass(frozen=True, slots=True)
class Request:
    """A line of a batch.

    Attributes:
        number: Counted from 1 among the lines that are not blank.
        custom_id: `None` if the line has none that can be read.
        wanted: What it asks for, or why it gets nothing.
    """

    number: int
    custom_id: str | None
    wanted: Embeddings | Refusal | LineError


def read_request(
    content: bytes, number: int, line: int, model: ModelInfo, *, is_too_long: bool, is_ended: bool
) -> Request:
    """Reads a line; nothing in it raises.

    Args:
        content: The line, or the beginning of one that is too long.
        number: Of the request.
        line: Its number in the file, for messages.
        model: Of the server, with its limits.
        is_too_long: Whether the line is too long to be parsed.
        is_ended: Whether it ends in a line break.
    """
    custom_id = None
    try:
        if is_too_long:
            custom_id = custom_id_of(content)
            raise _too_large(model)
        document = _parsed(content, line, is_ended=is_ended)
        custom_id = _required_text(document, "custom_id", line)
        return Request(number, custom_id, _read(document, len(content), line, model))
    except LineError as error:
        return Request(number, error.custom_id if custom_id is None else custom_id, error)
    except Refusal as error:
        return Request(number, custom_id, error)


def custom_id_of(content: bytes) -> str | None:
    """Returns the `custom_id` of a line, even if the line is otherwise wrong; `None` if it has none.

    Of a line that is cut off, it is found only as the first field.
    """
    try:
        document = json.loads(content.decode())
    except (ValueError, RecursionError):
        first = _FIRST_FIELD.match(content)
        try:
            document = {"custom_id": json.loads(first[1].decode())} if first else None
        except ValueError:
            document = None
    found = document.get("custom_id") if isinstance(document, dict) else None
    return found if isinstance(found, str) and _is_unicode(found) else None


def _parsed(content: bytes, line: int, *, is_ended: bool) -> dict[str, Any]:
    def invalid(why: str) -> LineError:
        end = "" if is_ended else "; the file ends here, without a line break"
        return LineError(
            "invalid_json_line", f"line {line} is not valid JSON: {why}{end}", custom_id_of(content)
        )

    try:
        document = json.loads(content.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise invalid(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise invalid(f"{error.msg} at character {error.pos}") from None
    except (ValueError, RecursionError) as error:
        raise invalid(str(error)) from None
    if not isinstance(document, dict):
        raise LineError("invalid_json_line", f"line {line} is {kind_of(document)}; write a JSON object")
    if _SURROGATE.search(content) and not _is_unicode(json.dumps(document, ensure_ascii=False)):
        raise invalid("it has half of a surrogate pair")
    return document


def _read(document: dict[str, Any], size: int, line: int, model: ModelInfo) -> Embeddings:
    method, url = (_required_text(document, name, line) for name in ("method", "url"))
    if url not in _URLS:
        message = f"nothing is served at {shown(url)}; in a batch, write {_URLS[0]}"
        raise Refusal(message, code="path_unknown", status=404)
    if method != "POST":
        message = f"method {shown(method)} is not allowed here; use POST"
        raise Refusal(message, code="method_not_allowed", status=405)
    body = document.get("body")
    if body is None:
        raise _missing("body", line)
    if size > model.max_request_bytes:
        raise _too_large(model)
    if not isinstance(body, dict):
        raise Refusal(f"the body is {kind_of(body)}; send a JSON object", code="request_malformed")
    return read_embeddings(Fields(body), model)


def _required_text(document: dict[str, Any], name: str, line: int) -> str:
    value = document.get(name)
    if value is None:
        raise _missing(name, line)
    if not isinstance(value, str):
        raise LineError("invalid_type", f"line {line}: {name} is {kind_of(value)}; write a string")
    return value


def _missing(name: str, line: int) -> LineError:
    return LineError(_MISSING, f"line {line} has no {name}")


def _too_large(model: ModelInfo) -> Refusal:
    message = f"the body has more than {model.max_request_bytes} bytes; send less per request"
    return Refusal(message, code="request_too_large", status=413)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
