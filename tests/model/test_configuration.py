"""Every field of a checkpoint's configuration works as in transformers, or is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alignserve_server.model.align import LoadOptions, load_align
from alignserve_server.model.checkpoint import CheckpointError, resolve_checkpoint
from alignserve_server.model.configuration import REQUIREMENTS, check_configuration
from alignserve_server.model.encoder import l2_normalize
from alignserve_server.model.runtimes import network as networks
from alignserve_server.model.runtimes import onednn
from alignserve_server.model.runtimes.runtime import Rescaling
from alignserve_server.model.runtimes.towers import Towers
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import AlignConfig, AlignModel, AlignTextConfig, AlignVisionConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from tests.model.tiny import edit, tiny_model, write_tiny_checkpoint

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),  # of torch
]

PAGE = Path(__file__).parents[2] / "server" / "docs" / "checkpoints.md"
PIXELS = torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
INPUT_IDS = torch.randint(5, 40, (3, 12), generator=torch.Generator().manual_seed(0))
ATTENTION_MASK = (torch.arange(12) < torch.tensor([[12], [7], [2]])).long()
SHARED = {field.name for field in dataclasses.fields(PreTrainedConfig)}

TEXT = {
    "vocab_size": 90,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 8,
    "hidden_act": "relu",
    "max_position_embeddings": 20,
    "type_vocab_size": 1,
    "layer_norm_eps": 0.5,
    "pad_token_id": 7,
    "bos_token_id": 3,
    "eos_token_id": 4,
    "hidden_dropout_prob": 0.9,
    "attention_probs_dropout_prob": 0.9,
    "chunk_size_feed_forward": 3,
}
VISION = {
    "width_coefficient": 0.5,
    "depth_coefficient": 1.6,
    "depth_divisor": 4,
    "kernel_sizes": [4, 3],
    "in_channels": [32, 24],
    "out_channels": [16, 24],
    "depthwise_padding": [1],
    "strides": [2, 2],
    "num_block_repeats": [2, 1],
    "expand_ratios": [3, 1],
    "squeeze_expansion_ratio": 0.9,
    "hidden_act": "gelu",
    "hidden_dim": 50,
    "pooling_type": "max",
    "image_size": 600,
    "batch_norm_eps": 0.5,
    "batch_norm_momentum": 0.5,
    "drop_connect_rate": 0.9,
}
MATCHING: dict[str, dict[str, Any]] = {
    # fields that must change together, so that blocks and projections match
    "width_coefficient": {"out_channels": [32, 48], "in_channels": [32, 32]},
    "in_channels": {"out_channels": [24, 24], "width_coefficient": 1.0},
    "depth_divisor": {"out_channels": [16, 24]},
}


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def assert_served_equals(model: AlignModel) -> None:
    """Compares the towers, with and without oneDNN, with AlignModel itself."""
    output = model(
        pixel_values=PIXELS.permute(0, 3, 1, 2) / 255, input_ids=INPUT_IDS, attention_mask=ATTENTION_MASK
    )
    rescaling = Rescaling(np.full(3, 1 / 255, np.float32), np.zeros(3, np.float32))
    optimized = networks.optimized(copy.deepcopy(model))
    for is_fused in (False, True):
        towers = Towers(copy.deepcopy(optimized), rescaling, torch.device("cpu"), torch.float32)
        if is_fused:
            onednn.fuse(towers)

        images, texts = towers.embed_pixels(PIXELS), towers.embed_tokens(INPUT_IDS, ATTENTION_MASK)

        torch.testing.assert_close(normalize(images), output.image_embeds, rtol=0, atol=1e-5)
        torch.testing.assert_close(normalize(texts), output.text_embeds, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("field", "value"), TEXT.items(), ids=TEXT)
def test_text_fields_are_obeyed(field, value):
    """With another value of a field, vectors still equal AlignModel's."""
    assert_served_equals(tiny_model(text={field: value}))


@pytest.mark.parametrize(("field", "value"), VISION.items(), ids=VISION)
def test_vision_fields_are_obeyed(field: str, value: Any) -> None:
    """With another value of a field, vectors still equal AlignModel's."""
    assert_served_equals(tiny_model(vision={field: value, **MATCHING.get(field, {})}))


@pytest.mark.long
@pytest.mark.parametrize("activation", ACT2FN)
def test_every_activation_is_obeyed(activation):
    """Activations with and without oneDNN support work in both towers."""
    if activation == "xielu":
        pytest.skip("computes only in bfloat16")

    scale = {"initializer_range": 0.05}  # otherwise squares of squares overflow
    vision = {"hidden_act": activation, **scale}
    assert_served_equals(tiny_model(text={"hidden_act": activation, **scale}, vision=vision))


def test_every_field_of_transformers_is_documented():
    """Every field is listed, so that new fields of transformers are assessed before they are served."""
    expected = {field.name for field in dataclasses.fields(AlignConfig)}
    for section, config in (("text_config", AlignTextConfig), ("vision_config", AlignVisionConfig)):
        own = {field.name for field in dataclasses.fields(config)} - SHARED
        expected |= {f"{section}.{name}" for name in own}
    refused = {
        f"{section}.{field}" if section else field
        for section, fields in REQUIREMENTS.items()
        for field in fields
    }

    documented = documented_fields()

    assert set(documented) == expected | refused
    assert {field for field, effect in documented.items() if "refused" in effect} == refused


def test_every_field_is_tried():
    """Every field in the README's table has a test here."""
    fields = {f"text_config.{name}" for name in TEXT} | {f"vision_config.{name}" for name in VISION}
    elsewhere = SHARED | {"text_config", "vision_config", "projection_dim", "temperature_init_value"}

    rest = {
        field
        for field, effect in documented_fields().items()
        if field not in fields | elsewhere and not effect.startswith("refused") and "initializer" not in field
    }

    assert rest == set()


def documented_fields() -> dict[str, str]:
    table = PAGE.read_text().partition("| field of `config.json` | |\n")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[1:]]
    return {field: effect for names, effect in rows for field in re.findall(r"`([\w.]+)`", names)}


REFUSED = {
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "text_config.vocab_size": 0,
    "text_config.type_vocab_size": 0,
    "text_config.max_position_embeddings": 0,
    "text_config.num_hidden_layers": 0,
    "text_config.pad_token_id": 5000,
    "text_config.position_embedding_type": "relative_key",
    "text_config.is_decoder": True,
    "text_config.add_cross_attention": True,
    "vision_config.num_channels": 1,
    "vision_config.pooling_type": "sum",
    "vision_config.num_block_repeats": [],
}


def with_field(config: dict, path: str, value: object) -> dict:
    section, _, field = path.rpartition(".")
    return {**config, section: {**config[section], field: value}} if section else {**config, field: value}


@pytest.mark.parametrize(("path", "value"), REFUSED.items(), ids=REFUSED)
def test_unsupported_values_are_refused_by_name(path, value):
    """The message has the field, its value and the supported values."""
    config = tiny_model().config.to_dict()
    check_configuration(config)

    with pytest.raises(CheckpointError, match=re.escape(f"{path} is {value!r}")) as refused:
        check_configuration(with_field(config, path, value))

    assert "supported: " in str(refused.value)


def test_every_refusal_is_tried():
    """Every requirement has a test."""
    fields = {f"{section}.{field}".lstrip(".") for section, names in REQUIREMENTS.items() for field in names}

    assert fields == set(REFUSED)


def load(folder: Path, **options: Any):
    return load_align(
        resolve_checkpoint(str(folder)), LoadOptions(**{"runtime": "torch", "device": "cpu", **options})
    )


def embed(encoder) -> np.ndarray:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (40, 40, 3), np.uint8) for _ in range(3)]
    texts = [encoder.tokenize(text, truncate=False).token_ids for text in ("cat", "a dog of the cat!")]
    return l2_normalize(np.concatenate([encoder.encode_images(pixels), encoder.encode_texts(texts)]))


@pytest.fixture(scope="module")
def plain(tiny_folder: Path):
    """The tiny checkpoint, unchanged."""
    return load(tiny_folder)


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_refused_field_ends_the_start(folder):
    """The check precedes any loading or conversion."""
    edit(folder / "config.json", quantization_config={"quant_method": "fp8"})

    with pytest.raises(CheckpointError, match=r"quantization_config .* is not supported"):
        load(folder)


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
def test_an_unknown_activation_is_refused_by_name(folder, section):
    """The message lists the activations that transformers supports."""
    edit(
        folder / "config.json", **with_field(tiny_model().config.to_dict(), f"{section}.hidden_act", "swoosh")
    )

    with pytest.raises(CheckpointError, match=rf"{section}\.hidden_act is 'swoosh'.*supported: .*gelu"):
        load(folder)


@pytest.mark.long
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("return_dict", False),
        ("text_config.return_dict", False),
        ("vision_config.return_dict", False),
        ("output_hidden_states", True),
        ("text_config.output_attentions", True),
        ("text_config.chunk_size_feed_forward", 5),
        ("dtype", "bfloat16"),
        ("text_config.dtype", "float16"),
        ("architectures", ["AlignTextModel"]),
        ("is_encoder_decoder", True),
        ("problem_type", "regression"),
        ("initializer_range", 9.0),
        ("temperature_init_value", 0.0),
        ("text_config.unheard_of", 1),
        ("attn_implementation", "flash_attention_2"),
    ],
)
def test_a_field_without_effect_has_none(plain, folder, path, value):
    """A field listed as without effect does not change vectors or the temperature."""
    edit(folder / "config.json", **with_field(tiny_model().config.to_dict(), path, value))

    changed = load(folder)

    np.testing.assert_array_equal(embed(changed), embed(plain))
    assert changed.info.temperature == plain.info.temperature


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_saved_in_half_precision_are_read_exactly(folder, dtype):
    """Weights of other types are computed in float32, like AlignModel in float32."""
    tiny_model().to(dtype).save_pretrained(folder)
    model = AlignModel.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = load(folder)
    text = encoder.tokenize("a dog", truncate=False)
    expected = model.get_text_features(torch.tensor([text.input_ids])).pooler_output.numpy()

    actual = encoder.encode_texts([text.token_ids])

    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_the_count_of_training_batches_may_be_missing(plain, folder):
    """The count of training batches may be missing: it does not affect results."""
    change_weights(
        folder,
        lambda weights: [weights.pop(name) for name in list(weights) if "num_batches_tracked" in name],
    )

    np.testing.assert_array_equal(embed(load(folder)), embed(plain))


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan"), float("inf"), -float("inf"), 1e-40])
def test_a_temperature_that_cannot_divide_is_refused(folder, temperature):
    """Invalid temperatures, which would give NaN or reverse the order of labels, are refused."""
    change_weights(folder, lambda weights: weights.update(temperature=torch.tensor(temperature)))

    with pytest.raises(CheckpointError, match="the weight temperature"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name",
    [
        "text_model.embeddings.word_embeddings.weight",
        "text_projection.bias",
        "vision_model.embeddings.batchnorm.running_var",
    ],
)
def test_weights_that_are_not_finite_are_named(folder, name, value):
    """Weights that are not finite are refused, even those of a word that the probe lacks."""
    change_weights(folder, lambda weights: weights[name].view(-1)[-1:].fill_(value))

    with pytest.raises(CheckpointError, match=f"the weight {name} has values that are not finite"):
        load(folder)


@pytest.mark.parametrize("scale", [0.0, 1e30, 1e-30])
def test_vectors_without_a_direction_are_named(folder, scale):
    """Zeros, and numbers whose squares overflow or underflow, are not a valid embedding."""
    change_weights(
        folder,
        lambda weights: [weights[f"text_projection.{part}"].mul_(scale) for part in ("weight", "bias")],
    )

    with pytest.raises(CheckpointError, match="embeds 'cat' as numbers that are zero or not finite"):
        load(folder)


def test_a_configuration_of_other_types_is_refused(folder):
    """A quoted number is refused, with transformers' own error."""
    config = with_field(tiny_model().config.to_dict(), "text_config.layer_norm_eps", "small")
    edit(folder / "config.json", **config)

    with pytest.raises(CheckpointError, match=r"cannot be loaded: .*layer_norm_eps"):
        load(folder)


def test_images_too_large_for_the_pooling_are_refused(tmp_path):
    """AlignModel's pooling window must cover the whole image."""
    folder = write_tiny_checkpoint(tmp_path / "model", tiny_model(vision={"hidden_dim": 2}))

    with pytest.raises(CheckpointError, match="AlignModel fails on the probe"):
        load(folder)
