"""Texts have transformers' tokens, whatever the tokenizer's settings, or startup fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from alignserve import AsyncClient
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.errors import TextUnsupported
from alignserve_server.model import probe
from alignserve_server.model.align import AlignEncoder, LoadOptions, load_align
from alignserve_server.model.checkpoint import CheckpointError, resolve_checkpoint
from alignserve_server.model.encoder import l2_normalize
from alignserve_server.model.preprocessing.decode import ImageDecoder
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from alignserve_server.model.preprocessing.texts import TextTokenizer
from alignserve_server.model.proof import proved_cosine
from alignserve_server.model.reference import make_reference
from alignserve_server.model.runtimes import network as networks
from alignserve_server.model.runtimes.runtime import ExecutionConfig, Rescaling
from alignserve_server.model.runtimes.torch_cpu import CpuRuntime
from alignserve_server.serving.server import Server
from structlog.testing import capture_logs
from transformers import AlignModel, AutoTokenizer

from tests.integration.serving import settings
from tests.model.tiny import SPARE_ROWS, VOCABULARY, edit, tiny_model, write_tiny_checkpoint

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),  # of torch
]

TEXTS = [
    "cat",
    "The Cat, a dog of École!",
    "E\u0301cole école ecole",
    "猫犬 of 猫犬cats",
    "a [MASK] of [SEP] cats [CLS]",
    "zebra zebras Zebra <extra>",
    "the dog " * 60 + "cat",
    "unknown ☂ words",
]
NEXT_ID = len(VOCABULARY)


def added(content: str, **options: bool) -> dict[str, object]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
    return {"content": content, **flags, **options}


def tokenizer_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "tokenizer_config.json", **changes)


def added_tokens(folder: Path) -> None:
    """Files of transformers 4, whose tokenizer_config.json lists every added token, work."""
    specials = {str(i): added(token, special=True) for i, token in enumerate(VOCABULARY[:5])}
    tokenizer_config(added_tokens_decoder={**specials, str(NEXT_ID): added("zebra")})(folder)


def legacy_files(folder: Path) -> None:
    edit(folder / "special_tokens_map.json", sep_token="the", mask_token="[MASK]")
    edit(folder / "added_tokens.json", zebra=NEXT_ID)


def cut_on_the_left(folder: Path) -> None:
    edit(
        folder / "tokenizer.json",
        truncation={"direction": "Left", "max_length": 12, "strategy": "LongestFirst", "stride": 0},
    )


def tokenizer_json_alone(folder: Path) -> None:
    """A generic class uses tokenizer.json unchanged; here it keeps capitals."""
    path = folder / "tokenizer.json"
    normalizer = {**json.loads(path.read_text())["normalizer"], "lowercase": False, "strip_accents": False}
    edit(path, normalizer=normalizer)
    tokenizer_config(tokenizer_class="PreTrainedTokenizerFast", do_lower_case=None)(folder)


def normalizer_that_is_overridden(folder: Path) -> None:
    path = folder / "tokenizer.json"
    edit(path, normalizer={**json.loads(path.read_text())["normalizer"], "lowercase": False})


def without_tokenizer_json(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    tokenizer_config(do_lower_case=False)(folder)


OBEYED = {
    "do_lower_case": tokenizer_config(do_lower_case=False),
    "strip_accents": tokenizer_config(strip_accents=False),
    "tokenize_chinese_chars": tokenizer_config(tokenize_chinese_chars=False),
    "added_tokens_decoder": added_tokens,
    "extra_special_tokens": tokenizer_config(extra_special_tokens=["<extra>"]),
    "cls_token": tokenizer_config(cls_token="the"),
    "sep_token": tokenizer_config(sep_token={"__type": "AddedToken", **added("of")}),
    "unk_token": tokenizer_config(unk_token="a"),
    "model_max_length": tokenizer_config(model_max_length=20),
    "max_length": tokenizer_config(max_length=20),
    "truncation_side": tokenizer_config(truncation_side="left"),
    "split_special_tokens": tokenizer_config(split_special_tokens=True),
    "legacy files": legacy_files,
    "truncation in tokenizer.json": cut_on_the_left,
    "only tokenizer.json": tokenizer_json_alone,
    "normalizer overridden": normalizer_that_is_overridden,
    "only vocab.txt": without_tokenizer_json,
}


def load(folder: Path, runtime: Any = "torch", **options: Any) -> AlignEncoder:
    return load_align(resolve_checkpoint(str(folder)), LoadOptions(runtime=runtime, device="cpu", **options))


def assert_equal_to_transformers(encoder: AlignEncoder, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    limit = encoder.info.max_text_tokens
    expected = [tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in TEXTS]
    model = AlignModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        embeds = [model.get_text_features(torch.tensor([ids])).pooler_output.numpy()[0] for ids in expected]

    texts = [encoder.tokenize(text, truncate=True) for text in TEXTS]

    assert [list(text.input_ids) for text in texts] == expected
    np.testing.assert_allclose(
        l2_normalize(encoder.encode_texts([text.token_ids for text in texts])),
        l2_normalize(np.stack(embeds)),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("change", OBEYED.values(), ids=OBEYED)
def test_tokens_are_those_of_auto_tokenizer(folder, change):
    """Settings that transformers applies on top of tokenizer.json apply here too, and vectors are equal."""
    change(folder)

    encoder = load(folder)

    assert_equal_to_transformers(encoder, folder)


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        (tokenizer_config(model_max_length=20), 20),
        (tokenizer_config(model_max_length=None, max_len=21), 21),
        (tokenizer_config(max_length=22), 22),
        (cut_on_the_left, 12),
    ],
    ids=["model_max_length", "max_len", "max_length", "tokenizer.json"],
)
def test_the_limit_is_the_smallest_of_all_files(folder, change, limit):
    """A text is too long exactly if AlignProcessor truncates it."""
    change(folder)

    assert load(folder).info.max_text_tokens == limit


@pytest.mark.long
def test_a_conversion_obeys_all_files(tmp_path):
    """OpenVINO has the same tokens, with a new and a cached conversion.

    What a conversion could read otherwise: the tokenizer, ids beyond the rows of the embeddings, the largest
    of a window, even kernels and rare activations.
    """
    pytest.importorskip("openvino")
    vision = {"pooling_type": "max", "kernel_sizes": [4, 3], "hidden_act": "gelu_new"}
    model = tiny_model(vision=vision, text={"hidden_act": "quick_gelu"})
    folder = write_tiny_checkpoint(tmp_path / "model", model)
    tokenizer_with(folder, "okapi")
    tokenizer_config(do_lower_case=False, split_special_tokens=True, truncation_side="left")(folder)
    pixels = list(np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8))
    expected = l2_normalize(load(folder).encode_images(pixels))

    for _ in range(2):
        encoder = load(folder, "openvino", cache_dir=tmp_path / "cache")

        assert encoder.info.runtime == "openvino"
        assert encoder.info.min_cosine_similarity > 0.99999
        assert_equal_to_transformers(encoder, folder)
        np.testing.assert_allclose(l2_normalize(encoder.encode_images(pixels)), expected, rtol=0, atol=1e-5)
        with pytest.raises(TextUnsupported, match="okapi"):
            encoder.tokenize("an okapi", truncate=True)


def token_types(folder: Path) -> None:
    """Token types other than 0, which TemplateProcessing can set, are refused."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer_config(tokenizer_class="PreTrainedTokenizerFast", model_input_names=names)(folder)
    path = folder / "tokenizer.json"
    processor = json.loads(path.read_text())["post_processor"]
    processor["single"][1]["Sequence"]["type_id"] = 1
    edit(path, post_processor=processor)


def one_token_twice(folder: Path) -> None:
    """Added tokens, special or not, behave as in transformers, which its JSON cannot express."""
    tokens = {str(NEXT_ID): added("<e>", special=True), str(NEXT_ID + 1): added("<e>", normalized=True)}
    tokenizer_config(added_tokens_decoder=tokens, split_special_tokens=True)(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tokenizer_config(padding_side="left"), "padding_side 'left' is not supported"),
        (tokenizer_config(model_input_names=["input_ids"]), "without 'attention_mask'"),
        (tokenizer_config(add_special_tokens=False), "transformers cannot load .* add_special_tokens"),
        (tokenizer_config(model_max_length=2), "2 tokens .* are special; that leaves none for words"),
        (tokenizer_config(model_max_length="long"), "model_max_length is 'long'"),
        (tokenizer_config(model_max_length=0), "model_max_length is 0"),
        (tokenizer_config(unk_token="<unk>"), r"tokenizer fails on .* Missing \[UNK\]"),
        (
            tokenizer_config(tokenizer_class="BertTokenizerLegacy"),
            "BertTokenizerLegacy has no tokenizers backend",
        ),
        (one_token_twice, r"the text '.*<e>.*' has the tokens .* in transformers"),
        (token_types, "token types other than 0"),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            "tokenizer.json is not a tokenizer",
        ),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_unsupported_settings_are_refused(folder, change, message):
    """Unsupported settings that would change vectors fail at startup, with the reason."""
    change(folder)

    with pytest.raises(CheckpointError, match=message):
        load(folder)


def tokenizer_with(folder: Path, *tokens: str) -> None:
    """Adds tokens with ids beyond the embeddings."""
    path = folder / "tokenizer.json"
    first = NEXT_ID + SPARE_ROWS
    extra = [{"id": first + i, **added(token)} for i, token in enumerate(tokens)]
    fillers = [{"id": NEXT_ID + i, **added(f"<filler{i}>")} for i in range(SPARE_ROWS)]
    edit(path, added_tokens=[*json.loads(path.read_text())["added_tokens"], *fillers, *extra])


def test_a_token_without_an_embedding_is_refused(folder):
    """A token without an embedding never reaches the device, and is logged; truncation may remove it."""
    tokenizer_with(folder, "zebra", "okapi")
    with capture_logs() as lines:
        encoder = load(folder)

    with pytest.raises(TextUnsupported, match=r"the token 'zebra' with id \d+, but the model has \d+ embed"):
        encoder.tokenize("a zebra", truncate=True)

    cut = encoder.tokenize("cat " * 80 + "zebra", truncate=True)
    assert np.isfinite(encoder.encode_texts([cut.token_ids])).all()
    (warning,) = [line for line in lines if line["event"] == "tokens_without_embedding"]
    assert (warning["count"], warning["examples"]) == (2, ["zebra", "okapi"])


async def test_callers_get_the_error_and_others_are_served(folder):
    """The error is TEXT_UNSUPPORTED with the field; concurrent texts of other callers are answered."""
    tokenizer_with(folder, "zebra")
    server = Server(settings(lanes=1), lambda _: load(folder))
    await server.start()
    await server.load()
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        AsyncClient(f"127.0.0.1:{server.port}") as client,
    ):
        stub = pb_grpc.AlignServiceStub(channel)
        request = pb.EmbedTextRequest(texts=["cat", "a zebra"])
        answers: Any = await asyncio.gather(
            *(client.embed_text(text) for text in ("cat", "dog", "the cat")),
            stub.EmbedText(request),
            return_exceptions=True,
        )
    await server.drain(0.0)
    await server.stop(5.0)

    *neighbours, refused = answers
    assert [np.linalg.norm(embedding) for embedding in neighbours] == pytest.approx([1.0] * 3)
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "texts[1]" in refused.details()
    assert "zebra" in refused.details()


@pytest.mark.parametrize(
    ("rows", "config"),
    [(3, {}), (20, {"cls_token": "z"}), (20, {"unk_token": "z"})],
    ids=["all", "cls", "unk"],
)
def test_a_tokenizer_of_another_model_is_refused(tmp_path, rows, config):
    """Startup fails if every text, or every unknown word, has a token without an embedding."""
    folder = write_tiny_checkpoint(tmp_path / "small", tiny_model(text={"vocab_size": rows}))
    tokenizer_config(**config)(folder)

    with pytest.raises(CheckpointError, match=rf"beyond the {rows} rows of the word embeddings"):
        load(folder)


@pytest.fixture(scope="module")
def proof(tiny_folder):
    """The arguments of `embed_probe` for the tiny checkpoint."""
    checkpoint = resolve_checkpoint(str(tiny_folder))
    network = networks.load_network(tiny_folder)
    reference = make_reference(checkpoint, network)
    images = ImagePreprocessor(checkpoint.image_processor, ImageDecoder(max_bytes=1 << 20, max_pixels=10**6))
    runtime = CpuRuntime(
        networks.optimized(network), ExecutionConfig("cpu", "float32"), Rescaling(images.scale, images.offset)
    )
    return runtime, reference, images, TextTokenizer.of(reference, max_bytes=1)


def test_the_probe_comes_out_as_in_transformers(proof):
    """The probe is embedded completely, whatever the limits for callers."""
    _, reference, *_ = proof

    cosine = proved_cosine(*proof, least=0.999)

    assert cosine > 1 - 1e-5
    assert {"[CLS]", "[MASK]"} <= set(" ".join(reference.input_ids).split())


@pytest.mark.parametrize("text", ["cat", ".", probe.EMBEDDED_TEXTS[-1]])
def test_other_tokens_are_named(proof, text):
    """A single different token fails, however similar the vectors are."""
    runtime, reference, images, texts = proof
    other = {**reference.input_ids, text: [*reference.input_ids[text][:-1], 0]}

    with pytest.raises(CheckpointError, match="has the tokens") as refused:
        proved_cosine(runtime, replace(reference, input_ids=other), images, texts, least=0.999)

    assert repr(text) in str(refused.value)


def test_other_pixels_are_named(proof):
    """A difference of a twentieth of a grey level in one pixel fails."""
    runtime, reference, images, texts = proof
    other = reference.pixel_values.copy()
    position = list(probe.images()).index("turned.jpg")
    other[position, 1, 3, 3] += 0.05 * images.scale[1]

    with pytest.raises(CheckpointError, match=r"the pixels of the image turned\.jpg differ"):
        proved_cosine(runtime, replace(reference, pixel_values=other), images, texts, least=0.999)


def test_the_probe_is_the_same_in_every_process():
    """The probe is the same in every process: its digest is part of the cache key."""
    first = probe.digest(), dict(probe.images())

    probe.images.cache_clear()
    probe.digest.cache_clear()

    assert (probe.digest(), probe.images()) == first
