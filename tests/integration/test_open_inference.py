"""The Open Inference Protocol on the gRPC port: the same queue, keys, limits and metrics as the API."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from alignserve_server.access.keys import Scope, changed_keys, new_key
from alignserve_server.kserve import messages
from alignserve_server.kserve.tensors import join_bytes
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.serving.server import Server

from tests.integration.open_inference import (
    ask,
    bytes_header,
    call_of,
    infer,
    output,
    parameters,
    raw_request,
    texts,
    typed_request,
)
from tests.integration.serving import RunningServer, refused, running, settings, until

SERVICE = "inference.GRPCInferenceService"


def expected(served: RunningServer, *values: str | bytes) -> np.ndarray:
    """Returns the normalized embeddings of texts or images."""
    return np.stack([served.encoder.embedding_of(value) for value in values])


async def test_probes_answer_by_state_and_need_no_key(tmp_path: Path) -> None:
    """Live from the start, ready once the model is loaded, and a model that does not exist is not ready."""
    server = Server(settings(api_keys_file=key_file(tmp_path)[0]), lambda _: FakeEncoder())
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        before = await ask(channel, "ServerLive"), await ask(channel, "ServerReady")
        model_before = await ask(channel, "ModelReady", name="text")
        await server.load()
        after = await ask(channel, "ServerReady"), await ask(channel, "ModelReady", name="text")
        unknown = await ask(channel, "ModelReady", name="resnet50")
        other_version = await ask(channel, "ModelReady", name="text", version="2")
    await server.stop(1.0)

    assert (before[0].live, before[1].ready, model_before.ready) == (True, False, False)
    assert (after[0].ready, after[1].ready) == (True, True)
    assert (unknown.ready, other_version.ready) == (False, False)


async def test_calls_while_loading_are_refused_with_a_delay() -> None:
    """Until the model is loaded, requests and descriptions of models get MODEL_LOADING."""
    server = Server(settings(), lambda _: FakeEncoder())
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        refusals = [
            await refused(infer(channel, texts("a cat"))),
            await refused(ask(channel, "ModelMetadata", name="text")),
        ]
    await server.stop(1.0)

    for refusal in refusals:
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING")
        assert refusal.retry_delay_seconds is not None
        assert refusal.message.startswith("MODEL_LOADING: ")


async def test_metadata_and_configuration_describe_the_same_tensors(served: RunningServer) -> None:
    """The configuration's dimensions are the metadata's, without the batch."""
    for name in ("image", "text", "classify", "compare"):
        metadata = await ask(served.channel, "ModelMetadata", name=name)
        config = (await ask(served.channel, "ModelConfig", name=name)).config

        batch = 1 if config.max_batch_size else 0
        for described, configured in (
            (metadata.inputs, config.input),
            (metadata.outputs, config.output),
        ):
            assert [tensor.name for tensor in described] == [tensor.name for tensor in configured]
            assert [list(tensor.shape[batch:]) for tensor in described] == [
                list(tensor.dims) for tensor in configured
            ]
        assert metadata.versions == ["1"]


async def test_metadata_lists_only_extensions_that_are_there(served: RunningServer) -> None:
    """No shared memory, sequences or model repository."""
    metadata = await ask(served.channel, "ServerMetadata")

    assert (metadata.name, bool(metadata.version)) == ("alignserve", True)
    assert list(metadata.extensions) == [
        "classification",
        "model_configuration",
        "parameters",
        "schedule_policy",
        "statistics",
    ]


async def test_raw_inputs_get_raw_outputs_and_typed_ones_typed(served: RunningServer) -> None:
    """Responses are encoded as their requests, with the same numbers."""
    values = {"text": [b"a cat", b"a dog"]}

    raw = await infer(served.channel, raw_request("text", values, id="7"))
    typed = await infer(served.channel, typed_request("text", values))

    assert (raw.model_name, raw.model_version, raw.id) == ("text", "1", "7")
    assert len(raw.raw_output_contents) == 1
    assert not typed.raw_output_contents
    for response in (raw, typed):
        np.testing.assert_allclose(
            output(response, "embedding"), expected(served, "a cat", "a dog"), atol=1e-6
        )


async def test_images_are_files_or_pixels(served: RunningServer) -> None:
    """BYTES are encoded files; UINT8 [N, height, width, 3] are pixels, raw or typed."""
    file = await infer(served.channel, raw_request("image", {"image": [b"an image"]}))
    header = {"name": "image", "datatype": "UINT8", "shape": [2, 1, 2, 3]}
    pixels = bytes(range(12))
    raw = messages.ModelInferRequest(model_name="image", inputs=[header], raw_input_contents=[pixels])
    typed = messages.ModelInferRequest(
        model_name="image", inputs=[{**header, "contents": {"uint_contents": pixels}}]
    )

    of_raw, of_typed = await infer(served.channel, raw), await infer(served.channel, typed)

    np.testing.assert_allclose(output(file, "embedding"), expected(served, b"an image"), atol=1e-6)
    assert output(of_raw, "embedding").shape == (2, 8)
    np.testing.assert_array_equal(output(of_raw, "embedding"), output(of_typed, "embedding"))


async def test_images_are_freed_once_they_are_decoded(served: RunningServer) -> None:
    """A request that waits for the device has them in its message only."""
    served.encoder.gate.clear()
    first = asyncio.ensure_future(infer(served.channel, texts("first")))
    await until(lambda: len(served.encoder.batches) == 1)
    images = [bytes([number]) * (1 << 20) for number in range(4)]
    request = raw_request("image", {"image": images}).SerializeToString()
    send: Any = served.channel.unary_unary(f"/{messages.SERVICE.full_name}/ModelInfer")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()  # without that of messages

        call = asyncio.ensure_future(send(request))
        await until(lambda: served.waiting("image") == 4)

        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        served.encoder.gate.set()
    await asyncio.gather(first, call)
    assert held < 1 << 20


async def test_half_precision_is_an_output_of_its_own(served: RunningServer) -> None:
    """FP16 is returned if asked for by name, and always raw, since the protocol has no typed form of it."""
    request = typed_request("text", {"text": [b"a cat"]}, outputs=[{"name": "embedding_fp16"}])

    response = await infer(served.channel, request)

    assert [tensor.name for tensor in response.outputs] == ["embedding_fp16"]
    np.testing.assert_allclose(output(response, "embedding_fp16"), expected(served, "a cat"), atol=1e-3)


async def test_scores_are_in_the_order_of_the_labels(served: RunningServer) -> None:
    """Each image has a row, and each label a column, as sent."""
    request = raw_request("classify", {"image": [b"one", b"two"], "labels": [b"cat", b"dog", b"car"]})

    response = await infer(served.channel, request)

    similarity = expected(served, b"one", b"two") @ expected(served, "cat", "dog", "car").T
    np.testing.assert_allclose(output(response, "similarity"), similarity, atol=1e-5)
    np.testing.assert_allclose(output(response, "logits"), similarity / 0.1, atol=1e-4)
    np.testing.assert_allclose(output(response, "scores").sum(axis=1), [1, 1], atol=1e-5)
    assert output(response, "label_index").tolist() == [[0, 1, 2]] * 2


async def test_top_k_returns_the_best_labels_first(served: RunningServer) -> None:
    """With `top_k`, columns are ranks, and `label_index` says which labels they are."""
    inputs = {"image": [b"one"], "labels": [b"cat", b"dog", b"car"]}
    all_labels = await infer(served.channel, raw_request("classify", inputs))

    best = await infer(served.channel, raw_request("classify", inputs, parameters=parameters(top_k=2)))

    scores = output(all_labels, "scores")[0]
    order = np.argsort(-scores)[:2]
    assert output(best, "label_index").tolist() == [order.tolist()]
    np.testing.assert_allclose(output(best, "scores")[0], scores[order], atol=1e-6)


@pytest.mark.parametrize("request_of", [raw_request, typed_request])
async def test_classes_are_value_index_and_the_whole_label(served: RunningServer, request_of: Any) -> None:
    """The output parameter `classification` returns the best labels as text, colons included."""
    inputs = {"image": [b"one", b"two"], "labels": [b"a: b", b"c:d:e", b"f"]}
    asked = [{"name": "scores", "parameters": parameters(classification=2)}, {"name": "logits"}]

    response = await infer(served.channel, request_of("classify", inputs, outputs=asked))

    everything = await infer(served.channel, raw_request("classify", inputs))
    for classes, scores in zip(output(response, "scores"), output(everything, "scores"), strict=True):
        for entry, best in zip(classes, np.argsort(-scores), strict=False):
            value, index, label = entry.decode().split(":", 2)
            assert int(index) == best
            assert label.encode() == inputs["labels"][best]
            assert float(value) == pytest.approx(scores[best], rel=1e-6)
    assert len(output(response, "scores")[0]) == 2
    assert output(response, "logits").shape == (2, 3)


async def test_templates_are_given_one_by_one_or_as_json(served: RunningServer) -> None:
    """`prompt_template` is one template, `prompt_templates` a JSON array of several."""
    inputs = {"image": [b"one"], "labels": [b"cat"]}

    one = await infer(
        served.channel,
        raw_request("classify", inputs, parameters=parameters(prompt_template="photo of {label}")),
    )
    several = await infer(
        served.channel,
        raw_request("classify", inputs, parameters=parameters(prompt_templates='["photo of {label}"]')),
    )

    similarity = expected(served, b"one") @ expected(served, "photo of cat").T
    for response in (one, several):
        np.testing.assert_allclose(output(response, "similarity"), similarity, atol=1e-5)


async def test_pairs_are_compared_row_by_row(served: RunningServer) -> None:
    """The model `compare` returns a similarity for each pair of an image and a text."""
    request = raw_request("compare", {"image": [b"one", b"two"], "text": [b"a cat", b"a dog"]})

    response = await infer(served.channel, request)

    pairs = (expected(served, b"one", b"two") * expected(served, "a cat", "a dog")).sum(axis=1)
    np.testing.assert_allclose(output(response, "similarity"), pairs, atol=1e-5)
    np.testing.assert_allclose(output(response, "logits"), pairs / 0.1, atol=1e-4)


REFUSALS: dict[str, tuple[Any, str, str]] = {
    "unknown model": (messages.ModelInferRequest(model_name="txt"), "MODEL_UNKNOWN", "did you mean 'text'"),
    "unknown version": (texts("a", model_version="3"), "MODEL_UNKNOWN", "unknown version '3'"),
    "input twice": (
        messages.ModelInferRequest(
            model_name="text",
            inputs=[bytes_header("text", 1)] * 2,
            raw_input_contents=[join_bytes([b"a"])] * 2,
        ),
        "ARGUMENT_INVALID",
        "given twice",
    ),
    "unknown input": (raw_request("text", {"texts": [b"a"]}), "ARGUMENT_INVALID", "did you mean 'text'"),
    "missing input": (raw_request("classify", {"image": [b"a"]}), "ARGUMENT_INVALID", "'labels' is missing"),
    "dimensions": (
        messages.ModelInferRequest(model_name="text", inputs=[bytes_header("text", *[1] * 5)]),
        "ARGUMENT_INVALID",
        "inputs[0].shape: 5 dimensions, limit 4",
    ),
    "raw and typed": (
        messages.ModelInferRequest(
            model_name="text",
            inputs=[{**bytes_header("text", 1), "contents": {"bytes_contents": [b"a"]}}],
            raw_input_contents=[join_bytes([b"a"])],
        ),
        "REQUEST_MALFORMED",
        "raw_input_contents is used as well",
    ),
    "raw count": (
        messages.ModelInferRequest(
            model_name="text", inputs=[bytes_header("text", 1)], raw_input_contents=[b"", b""]
        ),
        "REQUEST_MALFORMED",
        "2 entries for 1 inputs",
    ),
    "shared memory": (
        messages.ModelInferRequest(
            model_name="text",
            inputs=[
                {**bytes_header("text", 1), "parameters": parameters(shared_memory_region="r")},
            ],
        ),
        "ARGUMENT_INVALID",
        "shared memory is not supported",
    ),
    "shared memory output": (
        texts("a", outputs=[{"name": "embedding", "parameters": parameters(shared_memory_region="r")}]),
        "ARGUMENT_INVALID",
        "shared memory is not supported",
    ),
    "unknown output": (texts("a", outputs=[{"name": "embeddings"}]), "ARGUMENT_INVALID", "did you mean"),
    "output twice": (texts("a", outputs=[{"name": "embedding"}] * 2), "ARGUMENT_INVALID", "asked for twice"),
    "no labels to classify by": (
        texts("a", outputs=[{"name": "embedding", "parameters": parameters(classification=1)}]),
        "ARGUMENT_INVALID",
        "has no labels",
    ),
    "unknown parameter": (
        texts("a", parameters=parameters(truncated=True)),
        "ARGUMENT_INVALID",
        "did you mean 'truncate'",
    ),
    "parameter of another type": (
        texts("a", parameters=parameters(truncate="yes")),
        "ARGUMENT_INVALID",
        "parameters.truncate: string_param is not its type",
    ),
    "sequence": (texts("a", parameters=parameters(sequence_id=1)), "ARGUMENT_INVALID", "no sequences"),
    "timeout": (texts("a", parameters=parameters(timeout=-5)), "ARGUMENT_INVALID", "parameters.timeout: -5"),
    "timeout as text": (
        texts("a", parameters=parameters(timeout="1s")),
        "ARGUMENT_INVALID",
        "parameters.timeout: string_param",
    ),
    "priority": (texts("a", parameters=parameters(priority=3)), "ARGUMENT_INVALID", "send 1 for interactive"),
    "templates": (
        raw_request(
            "classify",
            {"image": [b"a"], "labels": [b"b"]},
            parameters=parameters(prompt_templates="a {label}"),
        ),
        "TEMPLATE_INVALID",
        "JSON array",
    ),
    "template without a placeholder": (
        raw_request(
            "classify", {"image": [b"a"], "labels": [b"b"]}, parameters=parameters(prompt_template="a photo")
        ),
        "TEMPLATE_INVALID",
        "parameters.prompt_template",
    ),
    "pairs of different number": (
        raw_request("compare", {"image": [b"a", b"b"], "text": [b"c"]}),
        "ARGUMENT_INVALID",
        "1 texts for 2 images",
    ),
    "bad image": (raw_request("image", {"image": [b"good", b"broken"]}), "IMAGE_UNREADABLE", "image[1]"),
    "empty text": (texts("a", " "), "TEXT_EMPTY", "text[1]"),
    "not UTF-8": (raw_request("text", {"text": [b"\xff"]}), "ARGUMENT_INVALID", "text[0]: not UTF-8"),
    "nothing": (texts(), "REQUEST_EMPTY", "text: no texts"),
    "too many": (texts(*["a"] * 65), "BATCH_TOO_LARGE", "text: 65 elements"),
    "too many labels": (
        raw_request("classify", {"image": [b"a"], "labels": [b"b"] * 1001}),
        "LABELS_INVALID",
        "labels: 1001",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_refusals_say_what_is_wrong_and_where(served: RunningServer, case: str) -> None:
    """The message has the reason, the field and the request's id: clients of the protocol read only that."""
    request, reason, text = REFUSALS[case]
    sent = messages.ModelInferRequest()
    sent.CopyFrom(request)
    sent.id = "id-1"

    refusal = await refused(infer(served.channel, sent))

    unknown_model = reason == "MODEL_UNKNOWN"
    assert refusal.code.name == ("NOT_FOUND" if unknown_model else "INVALID_ARGUMENT")
    assert refusal.reason == reason
    assert refusal.message.startswith(f"{reason} (request 'id-1'): ")
    assert text in refusal.message
    assert refusal.metadata == {"request_id": "id-1"}


async def test_what_a_caller_sent_is_cut_before_it_is_repeated(served: RunningServer) -> None:
    """A name or id of 100 kB does not make a status that no client accepts."""
    for request in (
        texts("a", id="i" * 100_000, parameters=parameters(**{"p" * 100_000: True})),
        texts("a", id="i" * 100_000, model_version="v" * 100_000),
    ):
        refusal = await refused(infer(served.channel, request))

        assert refusal.reason in ("ARGUMENT_INVALID", "MODEL_UNKNOWN")
        assert len(refusal.message) <= 512


async def test_an_id_that_is_too_long_is_refused(served: RunningServer) -> None:
    """Responses repeat it, and those that only say what went wrong take no room."""
    await infer(served.channel, texts("a", id="i" * 1024))

    refusal = await refused(infer(served.channel, texts("a", id="i" * 1025)))

    assert (refusal.reason, refusal.fields) == ("ARGUMENT_INVALID", ["id"])


async def test_numbers_that_take_long_to_parse_are_refused_before(served: RunningServer) -> None:
    """Typed pixels by the hundred thousand would block other callers."""
    header = {"name": "image", "datatype": "UINT8", "shape": [1, 512, 512, 3]}
    typed = {**header, "contents": {"uint_contents": bytes(512 * 512 * 3)}}

    refusal = await refused(
        infer(served.channel, messages.ModelInferRequest(model_name="image", inputs=[typed]))
    )

    assert refusal.reason == "BATCH_TOO_LARGE"
    assert refusal.message.startswith("BATCH_TOO_LARGE: ")


@pytest.mark.shapes
async def test_an_expired_timeout_ends_queued_work(served: RunningServer) -> None:
    """A request still in the queue at its `timeout`, in microseconds, is refused and never runs."""
    served.encoder.gate.clear()
    first = asyncio.ensure_future(infer(served.channel, texts("first")))
    await until(lambda: len(served.encoder.batches) == 1)

    late = infer(served.channel, texts("late", parameters=parameters(timeout=50_000)))
    refusal = await refused(late)
    served.encoder.gate.set()
    await first

    assert refusal.reason in ("EXPIRED_IN_QUEUE", "WOULD_MISS_DEADLINE")
    assert served.encoder.key("late") not in {key for batch in served.encoder.batches for key in batch.keys}


@pytest.mark.shapes
async def test_a_caller_that_leaves_cancels_its_queued_work(served: RunningServer) -> None:
    """A cancelled request is taken out of the queue."""
    served.encoder.gate.clear()
    first = asyncio.ensure_future(infer(served.channel, texts("first")))
    await until(lambda: len(served.encoder.batches) == 1)
    left = infer(served.channel, texts("left"))
    await until(lambda: served.waiting("text") == 1)

    left.cancel()

    await until(lambda: served.waiting("text") == 0)
    served.encoder.gate.set()
    await first


async def test_priority_is_a_number_or_metadata(served: RunningServer) -> None:
    """1 is interactive and 2 is bulk, in the queue and in the metrics; the metadata key works as well."""
    labels = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "ModelInfer", "size": "single"}

    await infer(served.channel, texts("a", parameters=parameters(priority=2)))
    await infer(served.channel, texts("b"), metadata=[("alignserve-priority", "bulk")])
    await infer(served.channel, texts("c", parameters=parameters(priority=1)))
    await infer(served.channel, texts("d"))

    name = "grpc_server_handling_seconds_count"
    assert served.sample(name, **labels, priority="bulk") == 2
    assert served.sample(name, **labels, priority="interactive") == 2


async def test_responses_have_the_limits_of_the_api(served: RunningServer) -> None:
    """A response above what the client accepts is refused before the work."""
    request = texts(*(f"text {number}" for number in range(64)))

    refusal = await refused(
        infer(served.channel, request, metadata=[("alignserve-max-response-bytes", "1000")])
    )

    assert refusal.reason == "BATCH_TOO_LARGE"
    assert served.items("text")["accepted"] == 0


@pytest.mark.shapes
async def test_statistics_count_requests_items_and_runs_apart(served: RunningServer) -> None:
    """They agree with each other, and with the metrics that Prometheus reads."""
    served.encoder.gate.clear()
    first = asyncio.ensure_future(infer(served.channel, texts("one", "two")))
    await until(lambda: len(served.encoder.batches) == 1)
    others = [asyncio.ensure_future(infer(served.channel, texts(f"other {n}"))) for n in range(3)]
    await until(lambda: served.waiting("text") == 3)
    served.encoder.gate.set()
    await asyncio.gather(first, *others)
    await infer(served.channel, texts("one"))  # from the cache
    await refused(infer(served.channel, texts(" ")))

    stats = (await ask(served.channel, "ModelStatistics", name="text")).model_stats[0]

    of = stats.inference_stats
    assert (of.success.count, of.fail.count) == (5, 1)
    assert (stats.inference_count, stats.execution_count, of.cache_hit.count) == (5, 2, 1)
    assert of.success.ns > of.queue.ns
    assert stats.last_inference > 0
    handled = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "ModelInfer"}
    assert served.sample("grpc_server_handled_total", **handled, grpc_code="OK") == of.success.count
    assert (
        served.sample("grpc_server_handled_total", **handled, grpc_code="INVALID_ARGUMENT") == of.fail.count
    )
    assert served.items("text")["ok"] == stats.inference_count + of.cache_hit.count
    assert served.sample("alignserve_batch_size_count", modality="text") == stats.execution_count


async def test_statistics_without_a_name_are_those_of_all_models(served: RunningServer) -> None:
    """perf_analyzer asks for one model, other tools for all."""
    response = await ask(served.channel, "ModelStatistics")

    assert [each.name for each in response.model_stats] == ["image", "text", "classify", "compare"]


def key_file(folder: Path) -> tuple[Path, dict[str, str]]:
    """Makes a file with keys of different scopes and quotas; returns the keys by name."""
    path, keys = folder / "keys.json", {}
    limits: dict[str, tuple[frozenset[Scope], dict[str, Any]]] = {
        "embed": (frozenset({Scope.EMBED}), {}),
        "classify": (frozenset({Scope.CLASSIFY}), {}),
        "slow": (frozenset({Scope.EMBED}), {"max_requests_per_second": 2.0}),
    }
    with changed_keys(path) as stored:
        for name, (scopes, quotas) in limits.items():
            keys[name], stored[name] = new_key(name, scopes, **quotas)
    return path, keys


def bearer(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[tuple[RunningServer, dict[str, str]]]:
    path, keys = key_file(tmp_path)
    async with running(api_keys_file=path) as server:
        yield server, keys


CLASSIFY = {"image": [b"one"], "labels": [b"cat"]}
COMPARE = {"image": [b"one"], "text": [b"a cat"]}


async def test_scopes_are_those_of_the_model(keyed: tuple[RunningServer, dict[str, str]]) -> None:
    """`image` and `text` need embed, `classify` needs classify, and either is enough for `compare`."""
    served, keys = keyed
    requests = {
        "text": texts("a"),
        "classify": raw_request("classify", CLASSIFY),
        "compare": raw_request("compare", COMPARE),
    }
    allowed = {"embed": {"text", "compare"}, "classify": {"classify", "compare"}}

    for key, models in allowed.items():
        for model, request in requests.items():
            call = infer(served.channel, request, metadata=bearer(keys[key]))
            if model in models:
                await call
            else:
                refusal = await refused(call)
                assert (refusal.code.name, refusal.reason) == ("PERMISSION_DENIED", "SCOPE_MISSING")
                assert refusal.message.startswith("SCOPE_MISSING: ")

    refusal = await refused(infer(served.channel, texts("a")))
    assert refusal.message.startswith("KEY_MISSING: ")
    refusal = await refused(ask(served.channel, "ModelMetadata", name="text"))
    assert refusal.reason == "KEY_MISSING"


async def test_quotas_count_calls(keyed: tuple[RunningServer, dict[str, str]]) -> None:
    """A key above its rate gets QUOTA_EXCEEDED; metadata is free."""
    served, keys = keyed
    metadata = bearer(keys["slow"])
    for _ in range(5):
        await call_of(served.channel, "ServerMetadata")(
            messages.message("ServerMetadataRequest")(), metadata=metadata
        )

    outcomes = await asyncio.gather(
        *(infer(served.channel, texts("a"), metadata=metadata) for _ in range(4)), return_exceptions=True
    )

    failed = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert len(failed) == 2
    assert all((error.details() or "").startswith("QUOTA_EXCEEDED: ") for error in failed)


async def test_the_protocol_can_be_turned_off() -> None:
    """Without it, its methods do not exist, and it has no metrics."""
    async with running(open_inference=False) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(served.channel, "ServerLive")

        labels = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "ModelInfer"}
        series = served.server.metrics.registry.get_sample_value("grpc_server_started_total", labels)

    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert series is None


async def test_methods_that_are_not_there_are_unimplemented(served: RunningServer) -> None:
    """Shared memory and the model repository are refused as unknown methods."""
    call: Any = served.channel.unary_unary(f"/{SERVICE}/SystemSharedMemoryStatus")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")

    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
