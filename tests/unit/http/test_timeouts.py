"""The headers with a caller's timeout."""

from __future__ import annotations

import pytest
from alignserve_server.errors import InvalidArgument
from alignserve_server.http.timeouts import CONNECT_TIMEOUT_MS, GRPC_TIMEOUT, TIMEOUT_MS, timeout_seconds


@pytest.mark.parametrize(
    ("header", "value", "seconds"),
    [
        (CONNECT_TIMEOUT_MS, "0", 0.0),
        (TIMEOUT_MS, "1500", 1.5),
        (GRPC_TIMEOUT, "2H", 7200.0),
        (GRPC_TIMEOUT, "3M", 180.0),
        (GRPC_TIMEOUT, "4S", 4.0),
        (GRPC_TIMEOUT, "500m", 0.5),
        (GRPC_TIMEOUT, "500u", 0.0005),
        (GRPC_TIMEOUT, "99999999n", 0.099999999),
    ],
)
def test_a_timeout_is_read(header: str, value: str, seconds: float) -> None:
    """In the unit of its protocol."""
    assert timeout_seconds(header, value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", ["", " 1", "-1", "+1", "1.5", "1e3", "1s", "12345678901", "\u0661", "1\n", "x" * 9999]
)
@pytest.mark.parametrize("header", [CONNECT_TIMEOUT_MS, TIMEOUT_MS, GRPC_TIMEOUT])
def test_a_malformed_timeout_is_refused(header: str, value: str) -> None:
    """It is repeated in part, and the header is named."""
    with pytest.raises(InvalidArgument, match=f"header {header}: ") as caught:
        timeout_seconds(header, value)

    assert len(str(caught.value)) < 300
