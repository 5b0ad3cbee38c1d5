"""The page at `/`, and the figures that it shows."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from alignserve_server.access.keys import Scope, changed_keys, new_key
from alignserve_server.http import page
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.serving.server import Server

from tests.integration.http.ports import serving
from tests.integration.http.test_admission import TEXTS
from tests.integration.serving import settings

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
FILES = sorted(Path(page.__file__).parent.glob("page/*"))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """An empty file of API keys."""
    path = tmp_path / "keys.json"
    with changed_keys(path):
        pass  # writes it
    return path


def add_key(path: Path, *scopes: Scope, **limits: Any) -> dict[str, str]:
    """Adds a key; returns the headers of a call with it."""
    with changed_keys(path) as keys:
        secret, keys["mine"] = new_key("mine", scopes=frozenset(scopes), **limits)
    return {"authorization": f"Bearer {secret}"}


class Markup(HTMLParser):
    """Collects the elements of a document: their names and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


class TestFiles:
    """What a browser loads."""

    async def test_the_page_has_a_strict_policy(self, keys: Path) -> None:
        """It needs no key, since a key is entered in it."""
        async with serving(api_keys_file=keys) as (_, client):
            answer = await client.get("/")

        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert (answer.status_code, policy) == (200, POLICY)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-cache"

    async def test_nothing_in_it_breaks_the_policy(self) -> None:
        """No scripts, styles or handlers in the text, and everything it names is served as what it is."""
        async with serving() as (_, client):
            elements = Markup((await client.get("/")).text).elements
            named = {
                attributes[name]
                for _, attributes in elements
                for name in ("src", "href")
                if name in attributes and not str(attributes[name]).startswith("#")
            }
            types = {path: (await client.get(str(path))).headers["content-type"] for path in named}

        assert types == {
            "/page/page.js": "text/javascript; charset=utf-8",
            "/page/page.css": "text/css; charset=utf-8",
            "/page/icon.svg": "image/svg+xml",
            "/openapi.json": "application/json",
        }
        for tag, attributes in elements:
            assert tag != "style"
            assert tag != "script" or "src" in attributes
            assert not [name for name in attributes if name == "style" or name.startswith("on")]

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
    def test_it_names_no_other_server(self, path: Path) -> None:
        """It works on networks that reach none."""
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")

        assert not re.findall(r"https?://|@import|url\(", text)

    async def test_modules_import_only_what_is_served(self) -> None:
        """A missing one would leave the page dead."""
        async with serving() as (_, client):
            for file in FILES:
                for name in re.findall(r'from "\./(.+)"', file.read_text()):
                    assert (await client.get(f"/page/{name}")).status_code == 200

    async def test_an_unchanged_file_is_not_sent_again(self) -> None:
        """Also if a proxy made the tag a weak one."""
        async with serving() as (_, client):
            tag = (await client.get("/")).headers["etag"]
            answers = [
                await client.get("/", headers={"if-none-match": given}) for given in (tag, f'"a", W/{tag}')
            ]
            changed = await client.get("/", headers={"if-none-match": '"another"'})

        assert [answer.status_code for answer in answers] == [304, 304]
        assert answers[0].content == b""
        assert (answers[0].headers["etag"], "content-length" in answers[0].headers) == (tag, False)
        assert changed.status_code == 200

    async def test_head_has_the_headers_without_the_body(self) -> None:
        """Monitors ask so."""
        async with serving() as (_, client):
            got, head = await client.get("/"), await client.head("/")

        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(got.content))

    async def test_posts_to_the_same_path_are_those_of_a_dialect(self) -> None:
        """Hugging Face's client posts to the address that it is given."""
        async with serving() as (_, client):
            embedded = await client.post("/", json={"inputs": "a cat"})
            refused = await client.delete("/")

        assert (embedded.status_code, refused.status_code) == (200, 405)
        assert set(refused.headers["allow"].split(", ")) == {"POST", "GET", "HEAD"}

    async def test_it_can_be_turned_off(self) -> None:
        """Then nothing of it is served."""
        async with serving(http_page=False) as (_, client):
            statuses = [
                (await client.get(path)).status_code for path in ("/", "/page/page.js", "/stats.json")
            ]

        assert statuses == [405, 404, 404]


class TestStats:
    """`/stats.json`."""

    @pytest.mark.whole
    async def test_figures_are_totals_that_callers_subtract(self) -> None:
        """Calls that do not run the model are not counted."""
        async with serving() as (_, client):
            before = (await client.get("/stats.json")).json()
            await client.post(TEXTS, json={"texts": ["a", "b"]})
            await client.post("/v1/embeddings", json={"input": "c", "model": "fake"})
            await client.get("/v1/models")
            answer = await client.get("/stats.json")
        now = answer.json()

        assert now["process"] == before["process"]
        assert now["seconds"] >= before["seconds"]
        assert (now["state"], now["queued"]) == ("serving", {"image": 0, "text": 0})
        assert {name: now["items"][name] - before["items"][name] for name in now["items"]} == {
            "image": 0,
            "text": 3,
        }
        assert now["batched_items"]["text"] - before["batched_items"]["text"] == 3
        assert 1 <= now["batches"]["text"] - before["batches"]["text"] <= 3
        calls = now["call_seconds"]
        assert sum(calls["counts"]) - sum(before["call_seconds"]["counts"]) == 2
        assert len(calls["counts"]) == len(calls["bounds"]) + 1
        assert calls["sum"] > before["call_seconds"]["sum"]
        assert answer.headers["cache-control"] == "no-store"

    async def test_the_fields_are_a_closed_set(self) -> None:
        """Nothing of callers or their inputs is in it."""
        async with serving() as (_, client):
            figures = (await client.get("/stats.json")).json()

        assert set(figures) == {
            *("process", "state", "seconds", "items", "queued", "batches", "batched_items", "call_seconds"),
        }
        assert set(figures["call_seconds"]) == {"bounds", "counts", "sum"}

    async def test_any_valid_key_will_do_and_pays_no_quota(self, keys: Path) -> None:
        """A page polls while its user calls."""
        key = add_key(keys, Scope.CLASSIFY, max_requests_per_second=0.01)
        async with serving(api_keys_file=keys) as (_, client):
            missing = await client.get("/stats.json")
            polled = [await client.get("/stats.json", headers=key) for _ in range(5)]

        assert (missing.status_code, missing.json()["error"]["reason"]) == (401, "KEY_MISSING")
        assert [answer.status_code for answer in polled] == [200] * 5

    async def test_the_state_is_told_before_the_model_is_loaded(self) -> None:
        """The page says so then."""
        server = Server(settings(http_listen="127.0.0.1:0"), lambda _: FakeEncoder())
        await server.start()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}") as client:
            figures = (await client.get("/stats.json")).json()
        await server.stop(0.0)

        assert (figures["state"], figures["queued"]) == ("loading", {"image": 0, "text": 0})
