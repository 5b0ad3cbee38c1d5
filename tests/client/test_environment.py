"""Addresses as people write them, and defaults from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme
from alignserve import AsyncClient, Client
from alignserve._environment import Connection, Tls
from alignserve._targets import proxy_of, target_of
from alignserve.testing import FakeServer

KEY_NAMES = (
    "TARGET",
    "SERVER",
    "LISTEN",
    "API_KEY",
    "TLS",
    "ROOT_CERTIFICATES",
    "CLIENT_CERTIFICATE",
    "CLIENT_KEY",
)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEY_NAMES:
        monkeypatch.delenv(f"ALIGNSERVE_{name}", raising=False)


@pytest.mark.parametrize(
    ("text", "name", "is_encrypted"),
    [
        ("localhost", "localhost:50051", None),
        (" align.example.com ", "align.example.com:50051", None),
        ("localhost:1234", "localhost:1234", None),
        ("127.0.0.1", "127.0.0.1:50051", None),
        ("::1", "[::1]:50051", None),
        ("[::1]", "[::1]:50051", None),
        ("[::1]:1234", "[::1]:1234", None),
        ("http://localhost:1234", "localhost:1234", False),
        ("http://localhost/", "localhost:50051", False),
        ("grpc://box", "box:50051", False),
        ("https://align.example.com", "align.example.com:443", True),
        ("HTTPS://align.example.com:8443/", "align.example.com:8443", True),
        ("grpcs://box", "box:50051", True),
        ("dns:///align:50051", "dns:///align:50051", None),
        ("unix:/run/align.sock", "unix:/run/align.sock", None),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2", None),
    ],
)
def test_addresses_are_understood(text: str, name: str, is_encrypted: bool | None) -> None:
    """The port defaults to 50051, and a URL determines the encryption."""
    target = target_of(text)

    assert (target.name, target.is_encrypted) == (name, is_encrypted)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "use HOST:PORT"),
        ("50051", "only a port"),
        ("localhost:", "no port"),
        ("localhost:0", "no port"),
        ("localhost:99999", "no port"),
        ("localhost:5 0051", "use HOST:PORT"),
        ("http://localhost:50051/v1", "has a path"),
        ("tcp://localhost:50051", "scheme 'tcp' is unknown"),
        ("fe80::1:x:50051", "IPv6"),
        ("http://", "use HOST:PORT"),
    ],
)
def test_invalid_addresses_are_refused_before_connecting(text: str, told: str) -> None:
    """Invalid addresses are refused: to gRPC they would be names that do not resolve."""
    with pytest.raises(ValueError, match=told):
        Client(text)


@pytest.mark.parametrize("beginning", ["https://", "https:", "", "//"])
def test_a_password_in_an_address_is_not_repeated(beginning: str) -> None:
    """Errors do not show passwords, since errors are logged."""
    with pytest.raises(ValueError, match="user or password") as caught:
        Client(f"{beginning}me:secret@align.example.com")

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("target", ["localhost:1", "127.0.0.9:1", "[::1]:1", "0.0.0.0:1", "ipv6:[::1]:1"])
def test_this_machine_has_no_proxy(target: str) -> None:
    """Every form of a loopback address is recognized."""
    assert proxy_of(target_of(target), {"http_proxy": "http://proxy:1"}) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"http_proxy": "http://proxy:1"}, ("http_proxy", "proxy:1")),
        ({"http_proxy": "http://me:secret@proxy:1/"}, ("http_proxy", "proxy:1")),
        ({"http_proxy": "http://proxy:1", "no_proxy": "other, example.com"}, None),
        ({"http_proxy": ""}, None),
        ({}, None),
    ],
)
def test_the_proxy_of_other_machines_is_known(environment: dict[str, str], expected: Any) -> None:
    """The proxy is the one that gRPC uses, shown without its password."""
    assert proxy_of(target_of("align.example.com:50051"), environment) == expected


@pytest.mark.parametrize("name", ["ALIGNSERVE_TARGET", "ALIGNSERVE_SERVER"])
async def test_the_target_comes_from_the_environment(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Both clients use the variable; an empty one counts as unset, and an argument overrides it."""
    monkeypatch.setenv(name, server.target)
    with Client() as client:
        assert client.model_info().model_id == "fake"
    async with AsyncClient() as asyncio_client:
        assert (await asyncio_client.model_info()).model_id == "fake"

    with Client("127.0.0.1:1") as other:
        assert other.target == "127.0.0.1:1"
    monkeypatch.setenv(name, "")
    with Client() as default:
        assert default.target == "127.0.0.1:50051"


def test_a_wrong_target_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable, so that the user does not look in the program."""
    monkeypatch.setenv("ALIGNSERVE_TARGET", "http://box/path")

    with pytest.raises(ValueError, match=r"^ALIGNSERVE_TARGET: "):
        Client()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_an_empty_key_is_refused(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """An empty variable, as from a secret that was not mounted, is an error."""
    monkeypatch.setenv("ALIGNSERVE_API_KEY", " ")

    with pytest.raises(ValueError, match="ALIGNSERVE_API_KEY is empty"):
        kind()


def test_the_key_comes_from_the_environment_unless_it_is_given(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key in `api_key` or in metadata overrides the variable."""
    monkeypatch.setenv("ALIGNSERVE_API_KEY", "as_env\n")
    for given in ({}, {"api_key": "as_given"}, {"metadata": [("Authorization", "Basic x")]}):
        with Client(server.target, **given) as client:
            client.embed_text("a")

    sent = [call.metadata["authorization"] for call in server.received]
    assert sent == ["Bearer as_env", "Bearer as_given", "Basic x"]


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pems")
    authority = trustme.CA()
    leaf = authority.issue_cert("me@x.example")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    return {name: str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}


def test_tls_comes_from_the_environment(pems: dict[str, str]) -> None:
    """Certificates and ALIGNSERVE_TLS turn TLS on; `tls` and http:// override both."""
    files = {
        "ALIGNSERVE_ROOT_CERTIFICATES": pems["ca"],
        "ALIGNSERVE_CLIENT_CERTIFICATE": pems["cert"],
        "ALIGNSERVE_CLIENT_KEY": pems["key"],
    }

    def security(target: str | None, tls: Tls, variables: dict[str, str]) -> tuple[bool, bool | None]:
        found = Connection.of(target, tls, variables).security
        return found.credentials is not None, found.has_client_certificate

    assert security(None, Tls(), {}) == (False, None)
    assert security(None, Tls(), {"ALIGNSERVE_TLS": "true"}) == (True, False)
    assert security(None, Tls(), {"ALIGNSERVE_TLS": ""}) == (False, None)
    assert security(None, Tls(), {"ALIGNSERVE_TLS": "0"}) == (False, None)
    assert security(None, Tls(), files) == (True, True)
    assert security(None, Tls(is_on=False), files) == (False, None)
    assert security("http://box", Tls(), files) == (False, None)
    assert security("https://box", Tls(), {}) == (True, False)
    assert security("box", Tls(is_on=True), files) == (True, True)
    assert security("box", Tls(root_certificates=Path(pems["ca"]).read_bytes()), {}) == (True, False)


@pytest.mark.parametrize(
    ("target", "tls", "variables", "told"),
    [
        (None, {}, {"ALIGNSERVE_TLS": "maybe"}, "ALIGNSERVE_TLS is 'maybe'"),
        (None, {}, {"ALIGNSERVE_TLS": "off", "ALIGNSERVE_ROOT_CERTIFICATES": "x"}, "unset one of them"),
        ("http://box", {"is_on": True}, {}, "scheme of the address turns TLS off"),
        ("https://box", {"is_on": False}, {}, "scheme of the address turns TLS on"),
        ("box", {"is_on": False, "root_certificates": b"x"}, {}, "tls is off"),
        ("box", {"client_certificate": b"x"}, {}, "requires its key"),
        ("box", {"root_certificates": b"x"}, {}, "root_certificates: its bytes is not PEM"),
    ],
)
def test_contradictions_are_refused(
    target: str | None, tls: dict[str, Any], variables: dict[str, str], told: str
) -> None:
    """Contradictory settings are refused instead of choosing one."""
    with pytest.raises(ValueError, match=told):
        Connection.of(target, Tls(**tls), variables)


@pytest.mark.parametrize(
    ("variables", "target"),
    [
        ({"LISTEN": "0.0.0.0:8500"}, "127.0.0.1:8500"),
        ({"LISTEN": "[::]:8500"}, "localhost:8500"),
        ({"LISTEN": "[::1]:8500"}, "[::1]:8500"),
        ({"LISTEN": "10.0.0.5:8500"}, "10.0.0.5:8500"),
        ({"LISTEN": ""}, "127.0.0.1:50051"),
        ({"LISTEN": "0.0.0.0:8500", "TARGET": "box:1"}, "box:1"),
    ],
)
def test_a_health_check_finds_the_server_of_its_container(variables: dict[str, str], target: str) -> None:
    """The default address is where the server's own variable says that it listens."""
    environment = {f"ALIGNSERVE_{name}": value for name, value in variables.items()}

    assert Connection.of(None, Tls(), environment).target.name == target
