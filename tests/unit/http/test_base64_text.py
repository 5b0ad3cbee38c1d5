"""Base64 in slices gives what the whole would give."""

from __future__ import annotations

import os
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable

import pytest
from alignserve_server.http.base64_text import _SLICE_BYTES, decode_base64


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, _SLICE_BYTES * 3 // 4, _SLICE_BYTES * 3 // 4 + 1, 1_000_000])
@pytest.mark.parametrize("encode", [b64encode, urlsafe_b64encode])
@pytest.mark.parametrize("is_padded", [True, False])
def test_what_was_encoded_is_decoded(size: int, encode: Callable[[bytes], bytes], is_padded: bool) -> None:
    """In either alphabet, with or without padding."""
    content = os.urandom(size)
    text = encode(content)

    assert decode_base64(text if is_padded else text.rstrip(b"=")) == content


@pytest.mark.parametrize(
    "text", [b"A", b"AA=A", b"=", b"AA AA", b"AAA%", b"A" * (_SLICE_BYTES - 1) + b"=" + b"AAAA"]
)
def test_other_text_is_refused(text: bytes) -> None:
    """Decoders that skip what they do not know turn it into another image."""
    with pytest.raises(ValueError):  # noqa: PT011 — binascii's own kind
        decode_base64(text)
