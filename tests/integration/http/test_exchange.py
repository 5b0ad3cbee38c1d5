"""The way of a request through an endpoint, over real sockets."""

from __future__ import annotations

from alignserve_server.api import CallScope, MethodRules
from alignserve_server.errors import TextEmpty
from alignserve_server.http.answer import Answer
from alignserve_server.http.endpoint import Endpoint
from alignserve_server.http.plain import PLAIN
from alignserve_server.http.request import HttpRequest

from tests.integration.http.ports import serving


async def _echo(request: HttpRequest, call: CallScope) -> Answer:
    value = request.json()
    if not value:
        raise TextEmpty.at("value", "it is empty")
    return Answer.json({"value": value})


ECHO = Endpoint("/echo", ("POST",), PLAIN, "echo", MethodRules(scopes=None), _echo)


async def test_an_answer_has_the_request_id_that_was_sent() -> None:
    """Clients find their calls in the server's log by it."""
    async with serving(ECHO) as (_, client):
        answer = await client.post("/echo", json=[1], headers={"x-request-id": "mine-1"})

    assert (answer.status_code, answer.json()) == (200, {"value": [1]})
    assert answer.headers["x-request-id"] == "mine-1"


async def test_a_refusal_has_the_shape_of_its_dialect() -> None:
    """So do those of no endpoint: an unknown path, another method, another type of body."""
    async with serving(ECHO) as (_, client):
        answers = [
            await client.post("/echo", json=[]),
            await client.get("/nowhere"),
            await client.get("/echo"),
            await client.post("/echo", content=b"a=1", headers={"content-type": "text/plain"}),
            await client.post("/echo", content=b"{"),
        ]

    refusals = [(answer.status_code, answer.json()["error"]["reason"]) for answer in answers]
    assert refusals == [
        (400, "TEXT_EMPTY"),
        (404, "PATH_UNKNOWN"),
        (405, "METHOD_NOT_ALLOWED"),
        (415, "MEDIA_TYPE_UNSUPPORTED"),
        (400, "REQUEST_MALFORMED"),
    ]
    assert answers[2].headers["allow"] == "POST"
