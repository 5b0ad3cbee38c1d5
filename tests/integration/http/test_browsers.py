"""What web pages and probes need."""

from __future__ import annotations

import httpx
import pytest
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.serving.server import Server

from tests.integration.http.ports import serving
from tests.integration.http.test_connect import SERVICE
from tests.integration.serving import settings

ORIGIN = "https://app.example"
PREFLIGHT = {"origin": ORIGIN, "access-control-request-method": "POST"}
HEADERS = (
    "authorization",
    "content-type",
    "alignserve-priority",
    "alignserve-timeout-ms",
    "connect-protocol-version",
    "connect-timeout-ms",
    "grpc-timeout",
    "x-grpc-web",
    "x-user-agent",
    "x-stainless-retry-count",
    "x-request-id",
)


@pytest.mark.parametrize("origins", ["*", f"https://other.example, {ORIGIN}"])
async def test_a_preflight_is_answered_without_a_key(origins: str, tmp_path) -> None:
    """A browser sends none with it."""
    keys = tmp_path / "keys.json"
    keys.write_text('{"keys": {}}')
    async with serving(http_cors_origins=origins) as (_, client):
        answer = await client.options(
            f"{SERVICE}/EmbedText",
            headers={**PREFLIGHT, "access-control-request-headers": ",".join(HEADERS)},
        )

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == (ORIGIN if "," in origins else "*")
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == ",".join(HEADERS)


@pytest.mark.parametrize("path", [f"{SERVICE}/EmbedText", f"{SERVICE}/Unknown", "/nowhere"])
async def test_a_refusal_can_be_read_by_the_page(path: str) -> None:
    """Otherwise the page sees a failed connection instead of the reason."""
    async with serving(http_cors_origins="*") as (_, client):
        answer = await client.post(path, json={"texts": []}, headers={"origin": ORIGIN})

    assert answer.status_code in (400, 404)
    assert answer.headers["access-control-allow-origin"] == "*"
    exposed = answer.headers["access-control-expose-headers"]
    for name in ("grpc-status", "grpc-message", "grpc-status-details-bin", "retry-after", "x-request-id"):
        assert name in exposed


async def test_pages_of_other_origins_are_not_let_in() -> None:
    """The browser keeps the answer from them, and the preflight fails."""
    async with serving(http_cors_origins=ORIGIN) as (_, client):
        preflight = await client.options(
            f"{SERVICE}/EmbedText", headers={**PREFLIGHT, "origin": "https://evil.example"}
        )
        answer = await client.post(
            f"{SERVICE}/EmbedText", json={"texts": ["a"]}, headers={"origin": "https://evil.example"}
        )

    assert preflight.status_code == 400
    assert "access-control-allow-origin" not in {*preflight.headers, *answer.headers}


async def test_without_the_setting_there_is_no_preflight() -> None:
    """As if the port knew no browsers."""
    async with serving() as (_, client):
        answer = await client.options(f"{SERVICE}/EmbedText", headers=PREFLIGHT)

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST, GET, HEAD")
    assert "access-control-allow-origin" not in answer.headers


async def test_probes_need_no_key_and_answer_head(tmp_path) -> None:
    """They are those of the metrics port."""
    async with serving() as (served, client):
        metrics = httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.server.metrics_port}")
        async with metrics:
            for path in ("/healthz", "/readyz"):
                ours, theirs = await client.get(path), await metrics.get(path)
                head = await client.head(path)
                assert (ours.status_code, ours.text) == (theirs.status_code, theirs.text)
                assert (head.status_code, head.content, head.headers["content-length"]) == (
                    200,
                    b"",
                    str(len(ours.content)),
                )
        refused = await client.post("/readyz")

    assert (refused.status_code, set(refused.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})


async def test_before_the_model_is_loaded_only_life_is_reported() -> None:
    """Calls are refused with a delay."""
    server = Server(settings(http_listen="127.0.0.1:0"), lambda _: FakeEncoder())
    await server.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}") as client:
        answers = [await client.get("/healthz"), await client.get("/readyz")]
        call = await client.post(f"{SERVICE}/EmbedText", json={"texts": ["too early"]})
    await server.stop(0.0)

    assert [answer.status_code for answer in answers] == [200, 503]
    assert answers[1].text == "loading\n"
    assert (call.status_code, call.json()["code"]) == (503, "unavailable")
    assert int(call.headers["retry-after-ms"]) >= 1000
