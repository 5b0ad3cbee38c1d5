"""Access control: TLS, client certificates, and API keys with scopes and quotas."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
import trustme
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.access.keys import Scope, changed_keys, new_key
from alignserve_server.errors import StartupError
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.serving.server import Server
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.integration.serving import (
    RunningServer,
    classify_request,
    image_request,
    read_status,
    refused,
    running,
    settings,
    text_request,
    until,
)


@pytest.fixture
def api_keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    with changed_keys(path):
        pass
    return path


def add_key(path: Path, name: str, *scopes: Scope, **limits) -> str:
    """Adds a key to the file and returns it."""
    with changed_keys(path) as keys:
        key, keys[name] = new_key(name, frozenset(scopes or (Scope.EMBED, Scope.CLASSIFY)), **limits)
    return key


def bearer(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


async def reflected(call: Any) -> set[str]:
    """Returns the services that reflection names."""
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    return {service.name for service in answer.list_services_response.service}


@pytest.fixture
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are checked for changes at every use, not once a second."""
    monkeypatch.setattr("alignserve_server.host.watched_files._INTERVAL_SECONDS", 0.0)


class TestKeys:
    """Calls must carry a valid key."""

    @pytest.mark.parametrize(
        ("metadata", "reason"),
        [
            ([], "KEY_MISSING"),
            ([("authorization", "Basic abc")], "KEY_MISSING"),
            ([("authorization", "Bearer ")], "KEY_MISSING"),
            ([("authorization", "Bearer as_search_guess")], "KEY_INVALID"),
            ([("authorization", "Bearer " + "x" * 5000)], "KEY_INVALID"),
        ],
        ids=["none", "other scheme", "empty", "wrong", "long"],
    )
    async def test_a_call_without_a_valid_key_is_refused(self, api_keys_file, metadata, reason) -> None:
        """Every kind of RPC refuses it, with a reason, before the request is read."""
        add_key(api_keys_file, "search")
        async with running(api_keys_file=api_keys_file) as served:
            malformed: Any = served.channel.unary_unary("/alignserve.v1.AlignService/EmbedText")
            calls = [
                served.stub.EmbedText(text_request("a"), metadata=metadata),
                served.stub.Classify(classify_request(b"x", "a"), metadata=metadata),
                served.stub.Compare(pb.CompareRequest(), metadata=metadata),
                served.stub.EmbedQuery(pb.EmbedQueryRequest(), metadata=metadata),
                served.stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=metadata),
                malformed(b"\xff\xff\xff", metadata=metadata),
                served.stub.StreamInfer(metadata=metadata).read(),
            ]

            errors = [await refused(call) for call in calls]

            assert {(error.code, error.reason) for error in errors} == {
                (grpc.StatusCode.UNAUTHENTICATED, reason)
            }
            assert served.encoder.batches == []
            assert served.sample("alignserve_rejected_total", reason=reason) == len(calls)

    async def test_a_key_allows_the_calls_in_its_scopes(self, api_keys_file) -> None:
        """Scopes apply to unary calls and to stream items; a stream continues after a refused item."""
        embed = add_key(api_keys_file, "search", Scope.EMBED)
        async with running(api_keys_file=api_keys_file) as served:
            await served.stub.EmbedText(text_request("a"), metadata=bearer(embed))
            await served.stub.EmbedImage(image_request(b"a"), metadata=bearer(embed))
            await served.stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=bearer(embed))
            error = await refused(served.stub.Classify(classify_request(b"x", "a"), metadata=bearer(embed)))
            stream = served.stub.StreamInfer(metadata=bearer(embed))
            items = [
                pb.StreamInferRequest(correlation_id="0", classify=classify_request(b"x", "a")),
                pb.StreamInferRequest(correlation_id="1", embed_text=text_request("b")),
            ]
            for item in items:
                await stream.write(item)
            await stream.done_writing()
            answers = {answer.correlation_id: answer async for answer in stream}

            assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
            assert read_status(answers["0"].error)[2] == "SCOPE_MISSING"
            assert answers["1"].WhichOneof("result") == "embed_text"

    @pytest.mark.parametrize(
        ("scope", "may_embed"), [(Scope.EMBED, True), (Scope.CLASSIFY, False)], ids=["embed", "classify"]
    )
    async def test_either_scope_allows_compare_and_only_embed_allows_queries(
        self, api_keys_file, scope, may_embed
    ) -> None:
        """Compare returns no embedding; EmbedQuery does. The same holds for stream items."""
        metadata = bearer(add_key(api_keys_file, "search", scope))
        compare = pb.CompareRequest(pairs=[pb.ImageTextPair(image=pb.Image(content=b"a"), text="a")])
        query = pb.EmbedQueryRequest(queries=[pb.ComposedQuery(terms=[pb.QueryTerm(text="a")])])
        async with running(api_keys_file=api_keys_file) as served:
            await served.stub.Compare(compare, metadata=metadata)
            embedding = served.stub.EmbedQuery(query, metadata=metadata)
            reason = None if may_embed else (await refused(embedding)).reason
            if may_embed:
                await embedding
            stream = served.stub.StreamInfer(metadata=metadata)
            await stream.write(pb.StreamInferRequest(correlation_id="compare", compare=compare))
            await stream.write(pb.StreamInferRequest(correlation_id="query", embed_query=query))
            await stream.done_writing()
            answers = {answer.correlation_id: answer async for answer in stream}

        assert reason == (None if may_embed else "SCOPE_MISSING")
        assert answers["compare"].WhichOneof("result") == "compare"
        assert answers["query"].WhichOneof("result") == ("embed_query" if may_embed else "error")
        assert may_embed or read_status(answers["query"].error)[2] == "SCOPE_MISSING"

    async def test_health_needs_no_key(self, api_keys_file) -> None:
        """Health checks work without a key, because probes have none."""
        add_key(api_keys_file, "search")
        async with running(api_keys_file=api_keys_file) as served:
            health = await health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest())

            assert health.status == health_pb2.HealthCheckResponse.SERVING

    @pytest.mark.parametrize("version", ["v1", "v1alpha"])
    async def test_reflection_needs_a_key_whatever_its_scopes(self, api_keys_file, version) -> None:
        """A key of any scope may use reflection; otherwise tools such as grpcurl could not use that key."""
        keys = [add_key(api_keys_file, scope.value, scope) for scope in Scope]
        async with running(api_keys_file=api_keys_file) as served:
            reflect: Any = served.channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                reflection_pb2.ServerReflectionRequest.SerializeToString,
                reflection_pb2.ServerReflectionResponse.FromString,
            )

            answers = [await reflected(reflect(metadata=bearer(key))) for key in keys]
            # They send nothing: grpc.aio replaces a status that arrives while it sends by INTERNAL.
            keyless = await refused(reflect().read())
            guessed = await refused(reflect(metadata=bearer("as_search_guess")).read())

            assert all("alignserve.v1.AlignService" in answer for answer in answers)
            assert [keyless.reason, guessed.reason] == ["KEY_MISSING", "KEY_INVALID"]

    async def test_reflection_does_not_count_against_a_keys_quotas(self, api_keys_file) -> None:
        """A tool keeps the reflection stream open during the call that it prepares."""
        key = add_key(api_keys_file, "search", max_concurrent_requests=1, max_requests_per_second=0.001)
        async with running(api_keys_file=api_keys_file) as served:
            stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
            streams = [stub.ServerReflectionInfo(metadata=bearer(key)) for _ in range(3)]
            for stream in streams:
                await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
                await stream.read()

            response = await served.stub.EmbedText(text_request("a"), metadata=bearer(key))

            assert len(response.embeddings) == 1

    async def test_keys_can_change_while_the_server_runs(self, api_keys_file, looks_always) -> None:
        """A revoked key stops working, and a new one works, without a restart."""
        first = add_key(api_keys_file, "first")
        async with running(api_keys_file=api_keys_file) as served:
            await served.stub.EmbedText(text_request("a"), metadata=bearer(first))
            second = add_key(api_keys_file, "second")
            with changed_keys(api_keys_file) as keys:
                del keys["first"]

            await served.stub.EmbedText(text_request("b"), metadata=bearer(second))
            error = await refused(served.stub.EmbedText(text_request("c"), metadata=bearer(first)))

            assert error.reason == "KEY_INVALID"

    async def test_a_key_is_checked_for_every_item_of_a_stream(self, api_keys_file, looks_always) -> None:
        """Otherwise an endless stream would outlive its key; it resumes once the key is valid again."""
        key = add_key(api_keys_file, "search")
        async with running(api_keys_file=api_keys_file) as served:
            stream: Any = served.stub.StreamInfer(metadata=bearer(key))

            async def answer(correlation_id: str) -> pb.StreamInferResponse:
                item = pb.StreamInferRequest(correlation_id=correlation_id, embed_text=text_request("a"))
                await stream.write(item)
                return await stream.read()

            before = await answer("0")
            with changed_keys(api_keys_file) as keys:
                kept = keys.pop("search")
            revoked = await answer("1")
            with changed_keys(api_keys_file) as keys:
                keys["search"] = kept.model_copy(update={"scopes": frozenset({Scope.CLASSIFY})})
            narrowed = await answer("2")
            stream.cancel()

            assert before.WhichOneof("result") == "embed_text"
            assert read_status(revoked.error)[2] == "KEY_INVALID"
            assert read_status(narrowed.error)[2] == "SCOPE_MISSING"

    async def test_an_invalid_key_file_changes_nothing(self, api_keys_file, looks_always, capfd) -> None:
        """Valid keys stay valid, and the log says what is wrong with the file."""
        key = add_key(api_keys_file, "search")
        async with running(api_keys_file=api_keys_file) as served:
            api_keys_file.write_text("{")

            await served.stub.EmbedText(text_request("a"), metadata=bearer(key))

        assert "api_keys_reload_failed" in "".join(capfd.readouterr())

    async def test_an_unreadable_file_is_read_later(self, api_keys_file, looks_always, monkeypatch) -> None:
        """It is reread even if it has not changed: a revoked key must not survive a permission error."""
        key = add_key(api_keys_file, "search")
        async with running(api_keys_file=api_keys_file) as served:
            with changed_keys(api_keys_file) as keys:
                del keys["search"]
            with monkeypatch.context() as denied:
                refusal = Mock(side_effect=PermissionError(13, "Permission denied"))
                denied.setattr("alignserve_server.access.keys.read_whole", refusal)
                await served.stub.EmbedText(text_request("a"), metadata=bearer(key))

            error = await refused(served.stub.EmbedText(text_request("b"), metadata=bearer(key)))

            assert error.reason == "KEY_INVALID"

    async def test_keys_appear_in_no_output(self, api_keys_file, capfd) -> None:
        """Neither valid nor invalid keys are in logs, metrics or errors."""
        key = add_key(api_keys_file, "search")
        wrong = "as_search_" + "secretguess" * 3
        async with running(api_keys_file=api_keys_file) as served:
            await served.stub.EmbedText(text_request("a"), metadata=bearer(key))
            served.encoder.failing.add(served.encoder.key("poison"))
            failure = await refused(served.stub.EmbedText(text_request("poison"), metadata=bearer(key)))
            refusal = await refused(served.stub.EmbedText(text_request("a"), metadata=bearer(wrong)))
            reader, writer = await asyncio.open_connection("127.0.0.1", served.server.metrics_port)
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            page = (await reader.read()).decode()
            writer.close()

        told = "".join([*capfd.readouterr(), page, str(failure), str(refusal)])
        assert "alignserve_rejected_total" in told
        assert key.removeprefix("as_search_") not in told
        assert "secretguess" not in told


class TestQuotas:
    """A key's limits on its request rate and its concurrent calls."""

    async def test_calls_above_the_rate_are_refused_with_a_delay(self, api_keys_file) -> None:
        """A burst of one second's requests is served, then calls at the rate; other keys are unaffected."""
        slow = add_key(api_keys_file, "slow", max_requests_per_second=2)
        fast = add_key(api_keys_file, "fast")
        async with running(api_keys_file=api_keys_file) as served:
            for i in range(2):
                await served.stub.EmbedText(text_request(f"{i}"), metadata=bearer(slow))

            error = await refused(served.stub.EmbedText(text_request("more"), metadata=bearer(slow)))
            for i in range(10):
                await served.stub.EmbedText(text_request(f"f {i}"), metadata=bearer(fast))

            assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
            assert error.retry_delay_seconds is not None
            assert 0 < error.retry_delay_seconds <= 0.5 * 1.25

    async def test_a_stream_above_the_rate_loses_no_item(self, api_keys_file) -> None:
        """Items of a stream wait where a unary call would be refused."""
        key = add_key(api_keys_file, "slow", max_requests_per_second=20)
        async with running(api_keys_file=api_keys_file) as served:
            stream: Any = served.stub.StreamInfer(metadata=bearer(key))
            for i in range(30):
                await stream.write(
                    pb.StreamInferRequest(correlation_id=str(i), embed_text=text_request(f"{i}"))
                )
            await stream.done_writing()
            answers = [answer.WhichOneof("result") async for answer in stream]

            assert answers == ["embed_text"] * 30

    @pytest.mark.parametrize("ending", ["ok", "cancel", "error"])
    async def test_a_concurrent_call_is_released_however_it_ends(self, api_keys_file, ending) -> None:
        """One more call is refused while the others run, and served once they have ended."""
        key = add_key(api_keys_file, "pair", max_concurrent_requests=2)
        async with running(api_keys_file=api_keys_file) as served:
            served.encoder.gate.clear()
            text = "poison" if ending == "error" else "a"
            served.encoder.failing.add(served.encoder.key("poison"))
            running_call = served.stub.EmbedText(text_request(text), metadata=bearer(key))
            stream: Any = served.stub.StreamInfer(metadata=bearer(key))
            await stream.write(pb.StreamInferRequest(correlation_id="1", embed_text=text_request("b")))
            await until(lambda: served.items("text")["in_flight"] == 2)

            error = await refused(served.stub.EmbedText(text_request("c"), metadata=bearer(key)))
            if ending == "cancel":
                running_call.cancel()
            served.encoder.gate.set()
            await asyncio.gather(asyncio.ensure_future(_outcome(running_call)))
            stream.cancel()
            await until(lambda: served.sample("alignserve_streams") == 0)
            calls = [served.stub.EmbedText(text_request(f"d {i}"), metadata=bearer(key)) for i in range(2)]
            await asyncio.gather(*calls)

            assert error.reason == "QUOTA_EXCEEDED"


async def _outcome(call) -> None:
    with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        await call


@pytest.mark.whole
@pytest.mark.usefixtures("looks_always")
async def test_a_flooding_caller_can_be_identified(api_keys_file) -> None:
    """Metrics show each key's accepted, refused and waiting items; a revoked key is no longer shown."""
    flood, search = add_key(api_keys_file, "nightly-index"), add_key(api_keys_file, "search")
    refused_key = add_key(api_keys_file, "no-texts", Scope.CLASSIFY)
    async with running(api_keys_file=api_keys_file, max_queue_size=64, max_batch_size=2) as served:

        def of(caller: str) -> list[Any]:  # numbers, or None where nothing is shown
            sample = served.server.metrics.registry.get_sample_value
            accepted, rejected = (
                sample("alignserve_caller_items_total", {"caller": caller, "outcome": outcome})
                for outcome in ("accepted", "rejected")
            )
            return [accepted, rejected, sample("alignserve_caller_waiting_items", {"caller": caller})]

        assert [of(caller) for caller in ("nightly-index", "search", "anonymous")] == [[0, 0, 0]] * 3
        served.encoder.gate.clear()
        flooding = [
            asyncio.ensure_future(
                _outcome(served.stub.EmbedText(text_request(f"a {i}", f"b {i}"), metadata=bearer(flood)))
            )
            for i in range(100)
        ]
        await until(lambda: sum(map(float, of("nightly-index")[:2])) == 200)
        calm = asyncio.ensure_future(served.stub.EmbedText(text_request("calm"), metadata=bearer(search)))
        await until(lambda: of("search")[0] == 1)
        await refused(served.stub.EmbedText(text_request("a", "b"), metadata=bearer(refused_key)))
        await refused(served.stub.EmbedText(text_request("a"), metadata=bearer("as_search_guess")))

        accepted, rejected, waiting = of("nightly-index")
        assert rejected > accepted > 0
        assert waiting >= accepted - 2  # one is in the model
        assert of("search") == [1, 0, 1]
        assert of("no-texts") == [0, 1, 0]  # refused before it was read
        assert of("anonymous") == [0, 1, 0]

        served.encoder.gate.set()
        await asyncio.gather(*flooding, calm)
        assert of("nightly-index")[2] == of("search")[2] == 0
        with changed_keys(api_keys_file) as keys:
            del keys["nightly-index"]
        await refused(served.stub.EmbedText(text_request("a"), metadata=bearer(flood)))
        assert of("nightly-index") == [None, None, None]
        assert served.sample("alignserve_items_accepted_total", modality="text") == accepted + 1


async def test_items_of_streams_are_counted_by_caller(api_keys_file) -> None:
    """Each caller's images and texts are counted, whether they are served or refused."""
    key = add_key(api_keys_file, "search")
    async with running(api_keys_file=api_keys_file) as served:
        requests = [
            pb.StreamInferRequest(correlation_id="1", embed_text=text_request("a", "b")),
            pb.StreamInferRequest(correlation_id="2", embed_text=pb.EmbedTextRequest()),
            pb.StreamInferRequest(correlation_id="3"),
        ]
        async for _ in served.stub.StreamInfer(iter(requests), metadata=bearer(key)):
            pass

        counts = {
            outcome: served.sample("alignserve_caller_items_total", caller="search", outcome=outcome)
            for outcome in ("accepted", "rejected")
        }
        assert counts == {"accepted": 2, "rejected": 2}


@pytest.mark.shapes
async def test_keys_on_one_host_share_the_server_fairly(api_keys_file) -> None:
    """Two keys on one host are two callers: a flood with one does not delay the other."""
    flood, small = add_key(api_keys_file, "flood"), add_key(api_keys_file, "small")
    async with running(api_keys_file=api_keys_file, max_batch_size=2) as served:
        served.encoder.gate.clear()
        calls = [
            asyncio.ensure_future(served.stub.EmbedText(text_request(f"{i}"), metadata=bearer(flood)))
            for i in range(50)
        ]
        await until(lambda: bool(served.encoder.batches))
        waiting = 50 - len(served.encoder.batches[0].keys)
        await until(lambda: served.waiting("text") == waiting)
        calls.append(asyncio.ensure_future(served.stub.EmbedText(text_request("s"), metadata=bearer(small))))
        await until(lambda: served.waiting("text") == waiting + 1)
        served.encoder.gate.set()
        await asyncio.gather(*calls)

        position = [served.encoder.key("s") in batch.keys for batch in served.encoder.batches].index(True)
        assert position <= 2


class Authority:
    """Issues certificates and writes them to files."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.root = self._ca.cert_pem.bytes()

    def issue(self, name: str, common_name: str | None = None, **period: Any) -> tuple[Path, Path]:
        """Writes a certificate for localhost and its key; replaces an earlier pair of that name."""
        issued = self._ca.issue_cert("localhost", common_name=common_name, **period)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        for path, content in ((key, issued.private_key_pem.bytes()), (certificate, chain)):
            fresh = path.with_suffix(".fresh")
            fresh.write_bytes(content)
            fresh.replace(path)
        return certificate, key

    def write_root(self) -> Path:
        path = self._folder / "root.pem"
        path.write_bytes(self.root)
        return path


def _days(number: int) -> datetime:
    """Returns the time that many days from now."""
    return datetime.now(UTC) + timedelta(days=number)


def _expired_root() -> bytes:
    """Makes a self-signed root that expired yesterday."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, _days(-9), _days(-1))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def secure_stub(served: RunningServer, root: bytes, *pair: Path) -> pb_grpc.AlignServiceAsyncStub:
    """Opens a new connection that trusts `root`, with a client's certificate and key if given."""
    certificate, key = (path.read_bytes() for path in pair) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(root, key, certificate)
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.secure_channel(f"localhost:{served.server.port}", credentials, options)
    return pb_grpc.AlignServiceStub(channel)


class TestTls:
    """Encrypted connections, with proof of each end's identity."""

    async def test_clients_that_trust_the_authority_are_served(self, authority) -> None:
        """Other clients, and unencrypted ones, are not served."""
        certificate, key = authority.issue("server")
        async with running(tls_certificate=certificate, tls_key=key) as served:
            response = await secure_stub(served, authority.root).EmbedText(text_request("a"))
            strangers = secure_stub(served, trustme.CA().cert_pem.bytes())
            errors = [
                await refused(strangers.EmbedText(text_request("b"))),
                await refused(served.stub.EmbedText(text_request("c"))),
            ]

            assert len(response.embeddings) == 1
            assert {error.code for error in errors} == {grpc.StatusCode.UNAVAILABLE}
            assert served.items("text")["accepted"] == 1

    async def test_a_client_without_a_required_certificate_is_refused(self, authority) -> None:
        """A client with a certificate from the trusted authority is served."""
        certificate, key = authority.issue("server")
        async with running(
            tls_certificate=certificate, tls_key=key, tls_client_ca=authority.write_root()
        ) as served:
            client = authority.issue("client", common_name="search")
            response = await secure_stub(served, authority.root, *client).EmbedText(text_request("a"))
            error = await refused(secure_stub(served, authority.root).EmbedText(text_request("b")))

            assert len(response.embeddings) == 1
            assert error.code is grpc.StatusCode.UNAVAILABLE

    async def test_a_renewed_certificate_applies_to_new_connections(self, authority, looks_always) -> None:
        """The server needs no restart, and existing connections continue."""
        certificate, key = authority.issue("server")
        async with running(tls_certificate=certificate, tls_key=key) as served:
            old = secure_stub(served, authority.root)
            await old.EmbedText(text_request("a"))
            renewed = Authority(certificate.parent)
            renewed.issue("server")

            await secure_stub(served, renewed.root).EmbedText(text_request("b"))
            await old.EmbedText(text_request("c"))
            error = await refused(secure_stub(served, authority.root).EmbedText(text_request("d")))

            assert error.code is grpc.StatusCode.UNAVAILABLE

    async def test_renewed_client_roots_apply_to_new_connections(
        self, authority, looks_always, tmp_path
    ) -> None:
        """New clients of the old roots are refused; existing connections continue."""
        certificate, key = authority.issue("server")
        roots = authority.write_root()
        (tmp_path / "renewed").mkdir()
        renewed = Authority(tmp_path / "renewed")
        old_client, new_client = authority.issue("client"), renewed.issue("client")
        async with running(tls_certificate=certificate, tls_key=key, tls_client_ca=roots) as served:
            old = secure_stub(served, authority.root, *old_client)
            await old.EmbedText(text_request("a"))
            roots.write_bytes(renewed.root)

            await secure_stub(served, authority.root, *new_client).EmbedText(text_request("b"))
            await old.EmbedText(text_request("c"))
            error = await refused(
                secure_stub(served, authority.root, *old_client).EmbedText(text_request("d"))
            )

            assert error.code is grpc.StatusCode.UNAVAILABLE

    async def test_a_certificate_without_its_key_changes_nothing(
        self, authority, looks_always, capfd
    ) -> None:
        """The old pair is used while the two files are being replaced, or if they never match."""
        certificate, key = authority.issue("server")
        other_certificate, _ = authority.issue("other")
        async with running(tls_certificate=certificate, tls_key=key) as served:
            old_certificate = certificate.read_bytes()
            certificate.write_bytes(other_certificate.read_bytes())
            await secure_stub(served, authority.root).EmbedText(text_request("a"))
            certificate.write_bytes(old_certificate)
            await secure_stub(served, authority.root).EmbedText(text_request("b"))

        told = "".join(capfd.readouterr())
        assert "certificate_reload_failed" in told
        assert "the key does not match the certificate" in told

    @pytest.mark.parametrize(
        ("period", "reason"),
        [
            ({"not_before": _days(-9), "not_after": _days(-1)}, "the certificate expired at"),
            ({"not_before": _days(1), "not_after": _days(9)}, "the certificate is not valid before"),
        ],
        ids=["expired", "not valid yet"],
    )
    async def test_a_renewed_certificate_that_is_not_valid_does_not_replace_a_valid_one(
        self, authority, looks_always, capfd, period, reason
    ) -> None:
        """Callers are served as before, the log says why, and the next valid certificate is used."""
        certificate, key = authority.issue("server")
        async with running(tls_certificate=certificate, tls_key=key) as served:
            authority.issue("server", **period)
            await secure_stub(served, authority.root).EmbedText(text_request("a"))
            expiry = served.sample("alignserve_certificate_expiry_timestamp_seconds", certificate="server")
            kept = "".join(capfd.readouterr())
            renewed = Authority(certificate.parent)
            renewed.issue("server")
            await secure_stub(served, renewed.root).EmbedText(text_request("b"))

        assert "certificate_reload_failed" in kept
        assert reason in kept
        assert expiry > time.time() + 10 * 86400
        assert "certificate_reloaded" in "".join(capfd.readouterr())

    async def test_an_expired_certificate_starts_with_a_warning(self, authority, looks_always, capfd) -> None:
        """The clock may be wrong; any other certificate replaces it, and a valid one ends the warnings."""
        certificate, key = authority.issue("server", not_before=_days(-9), not_after=_days(-2))
        async with running(tls_certificate=certificate, tls_key=key) as served:
            started = "".join(capfd.readouterr())
            authority.issue("server", not_before=_days(-9), not_after=_days(-1))
            await refused(secure_stub(served, authority.root).EmbedText(text_request("a")))
            replaced = "".join(capfd.readouterr())
            authority.issue("server")
            await secure_stub(served, authority.root).EmbedText(text_request("b"))

        assert "certificate_not_valid" in started
        assert "certificate_not_valid" in replaced
        assert "certificate_not_valid" not in "".join(capfd.readouterr())

    async def test_a_renewed_certificate_that_expires_sooner_is_used_with_a_warning(
        self, authority, looks_always, capfd
    ) -> None:
        """It may be an old certificate, restored by mistake."""
        certificate, key = authority.issue("server", not_after=_days(60))
        async with running(tls_certificate=certificate, tls_key=key) as served:
            authority.issue("server", not_after=_days(2))
            await secure_stub(served, authority.root).EmbedText(text_request("a"))

        assert "certificate_expires_sooner" in "".join(capfd.readouterr())

    @pytest.mark.parametrize("spoil", ["empty", "no certificate", "expired"])
    async def test_client_roots_without_a_valid_certificate_change_nothing(
        self, authority, looks_always, capfd, spoil
    ) -> None:
        """The earlier roots still decide which clients are served, and the log says why."""
        certificate, key = authority.issue("server")
        client, roots = authority.issue("client"), authority.write_root()
        contents = {"empty": b"", "no certificate": b"nothing", "expired": _expired_root()}
        async with running(tls_certificate=certificate, tls_key=key, tls_client_ca=roots) as served:
            roots.write_bytes(contents[spoil])

            await secure_stub(served, authority.root, *client).EmbedText(text_request("a"))
            error = await refused(secure_stub(served, authority.root).EmbedText(text_request("b")))

        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert "certificate_reload_failed" in "".join(capfd.readouterr())

    async def test_client_roots_with_one_valid_certificate_are_used(self, authority, looks_always) -> None:
        """The other certificates of a bundle may have expired."""
        certificate, key = authority.issue("server")
        client, roots = authority.issue("client"), authority.write_root()
        roots.write_bytes(_expired_root())
        async with running(tls_certificate=certificate, tls_key=key, tls_client_ca=roots) as served:
            roots.write_bytes(_expired_root() + authority.root)

            response = await secure_stub(served, authority.root, *client).EmbedText(text_request("a"))

            assert len(response.embeddings) == 1

    async def test_the_certificates_expiry_is_a_metric(self, authority) -> None:
        """An alert can then fire before the certificate expires."""
        certificate, key = authority.issue("server")
        async with running(tls_certificate=certificate, tls_key=key) as served:
            name = "alignserve_certificate_expiry_timestamp_seconds"

            assert served.sample(name, certificate="server") > time.time()

    @pytest.mark.parametrize("spoil", ["missing", "no certificate", "another's key", "encrypted key"])
    async def test_a_server_does_not_start_without_a_usable_certificate(self, authority, spoil) -> None:
        """The error names the flags."""
        certificate, key = authority.issue("server")
        _, other_key = authority.issue("other")
        if spoil == "missing":
            certificate.unlink()
        elif spoil == "no certificate":
            certificate.write_text("nothing")
        elif spoil == "encrypted key":
            plain = load_pem_private_key(key.read_bytes(), None)
            key.write_bytes(
                plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
            )
        else:
            key = other_key
        server = Server(settings(tls_certificate=certificate, tls_key=key), lambda _: FakeEncoder())

        with pytest.raises(StartupError, match="--tls-certificate"):
            await server.start()
        await server.stop(0.0)


class TestUnprotected:
    """A server that anyone on the network can use."""

    @pytest.mark.parametrize(
        ("listen", "warns"), [("0.0.0.0:0", True), ("127.0.0.1:0", False), ("[::1]:0", False)]
    )
    async def test_it_warns_if_other_machines_can_reach_it(self, listen, warns, capfd) -> None:
        """A server that listens only on loopback does not warn."""
        async with running(listen=listen):
            pass

        assert ("listening_unprotected" in "".join(capfd.readouterr())) == warns

    async def test_a_protected_one_does_not_warn(self, authority, api_keys_file, capfd) -> None:
        """With TLS and API keys there is no warning."""
        certificate, key = authority.issue("server")
        async with running(
            listen="0.0.0.0:0",
            tls_certificate=certificate,
            tls_key=key,
            api_keys_file=api_keys_file,
            require_auth=True,
        ):
            pass

        assert "listening_unprotected" not in "".join(capfd.readouterr())
