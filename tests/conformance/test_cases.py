"""The files that the harness reads are valid, and invalid ones are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import __main__ as command
from tests.conformance.cases import read_cases
from tests.conformance.clients import find_clients
from tests.conformance.languages import find_languages, read_language
from tests.conformance.matrix import Column, Outcome

_CASE = """
servers: {{fake: {{program: fake}}}}
cases:
  - {{name: one, title: One, server: {server}, steps: [{step}]}}
"""


def test_the_cases_are_valid_and_cover_what_the_protocol_has() -> None:
    """Every operation and every server is used."""
    cases = read_cases()
    text = (Path(__file__).parent / "cases.yaml").read_text("utf-8")

    servers = {case.server for case in cases.cases} | {"open", "protected"}  # of unmodified clients

    assert servers == set(cases.servers)
    operations = ("embed_image", "embed_text", "classify", "compare", "embed_query", "model_info", "health")
    assert all(f"op: {operation}" in text for operation in (*operations, "stream", "repeat"))


def test_every_driver_and_client_has_what_it_needs() -> None:
    """Manifests are readable, and packages of unmodified clients are pinned."""
    languages, clients = find_languages(), find_clients()

    assert [language.key for language in languages[:2]] == ["python", "python-blocking"]
    for client in clients:
        pins = client.folder / ("package-lock.json" if client.is_node else "requirements.txt")
        assert pins.exists(), client.key
        if not client.is_node:
            lines = [line.partition("#")[0].strip() for line in pins.read_text().splitlines()]
            assert all("==" in line or line.startswith("-") for line in lines if line), client.key


@pytest.mark.parametrize(
    ("server", "step", "message"),
    [
        ("other", "{call: {op: hello}}", "unknown server 'other'"),
        ("fake", "{call: {op: hello}, fake: {hold: }}", "a step has the keys call, fake"),
        ("fake", "{expect: 1}", "a step has the keys expect"),
        ("fake", "{cal: {op: hello}}", "a step has the keys cal"),
    ],
)
def test_an_invalid_case_is_refused_by_name(tmp_path: Path, server: str, step: str, message: str) -> None:
    """A misspelt key must not make a case pass."""
    path = tmp_path / "cases.yaml"
    path.write_text(_CASE.format(server=server, step=step))

    with pytest.raises(ValueError, match=message):
        read_cases(path)


def test_cases_are_selected_by_pattern() -> None:
    """A pattern that matches nothing is an error."""
    cases = read_cases()

    assert {case.name for case in cases.selected(["tls*", "compare"])} == {"tls", "tls_untrusted", "compare"}
    with pytest.raises(ValueError, match="no case is named 'tsl'"):
        cases.selected(["tsl"])


def test_a_manifest_is_filled_in(tmp_path: Path) -> None:
    """Placeholders become paths."""
    path = tmp_path / "driver.toml"
    path.write_text('name = "X"\nrun = ["{work}/driver", "{here}"]\nbuild = [["make", "-C", "{here}"]]\n')

    language = read_language(path, "x", tmp_path / "client", tmp_path / "products")

    assert language.run == [f"{tmp_path}/products/driver", f"{tmp_path}/client"]
    assert language.build == [["make", "-C", f"{tmp_path}/client"]]


@pytest.mark.parametrize(("text", "message"), [('name = "X"', "no run"), ("nam = 1", "unknown keys nam")])
def test_an_invalid_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """The message names the key."""
    path = tmp_path / "driver.toml"
    path.write_text(text)

    with pytest.raises(ValueError, match=message):
        read_language(path, "x", tmp_path, tmp_path)


def test_continuous_integration_requires_columns() -> None:
    """A column that is skipped or not there is missing."""
    there = [Column(key, key) for key in ("python", "go", "java", "node", "cpp", "ruby")]
    skipped = Column("rust", "Rust", skipped="cargo not on PATH", outcomes=[Outcome("one", "skipped")])

    browsers = [Column(key, key) for key in ("connect-web", "page")]
    assert command.missing([*there, skipped], browsers) == ["rust"]
    assert command.missing([*there, Column("rust", "Rust")], browsers[:1]) == ["page"]
