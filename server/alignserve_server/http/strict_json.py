"""Reads JSON strictly, without holding up the event loop for longer than a few milliseconds.

orjson refuses NaN, lone surrogates and bytes that are not UTF-8. It parses without giving up the GIL, so what
takes it long is counted first, by functions of NumPy that take a millisecond for megabytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from alignserve_server.errors import BatchTooLarge, RequestMalformed

MAX_VALUES = 1 << 17  # in a document, at least; parsing as many takes about 10 ms
_MAX_ESCAPES = 1 << 20  # backslashes; PHP writes one for each slash of base64
_SMALL_BYTES = 1 << 16


def parse_json(body: bytes, max_values: int = MAX_VALUES) -> Any:
    """Returns the value of a JSON document.

    Raises:
        RequestMalformed: It is not JSON.
        BatchTooLarge: It has more values or escaped characters than any valid request.
    """
    if len(body) > _SMALL_BYTES:
        _check_structure(body, max_values)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestMalformed(f"the body is not valid JSON: {error.msg} at byte {error.pos}") from None


def _check_structure(body: bytes, max_values: int) -> None:
    content = np.frombuffer(body, np.uint8)
    # Each value but the first follows one of these. They may also be in texts, which are small.
    values = sum(_count(content, character) for character in b",:[")
    if values > max_values:
        raise BatchTooLarge(f"the request has more than {max_values} values; send fewer per request")
    if _count(content, ord("\\")) > _MAX_ESCAPES:
        raise BatchTooLarge(
            f"the request has more than {_MAX_ESCAPES} escaped characters; write them as UTF-8"
        )


def _count(content: np.ndarray[Any, np.dtype[np.uint8]], character: int) -> int:
    return int(np.count_nonzero(content == character))
