"""transformers' AlignModel, loaded from a checkpoint and prepared for inference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers.activations import ACT2FN
from transformers.models.align.configuration_align import AlignConfig
from transformers.models.align.modeling_align import AlignModel
from transformers.utils import logging as transformers_logging

from alignserve_server.model.agreement import check_dimensions, check_temperature
from alignserve_server.model.checkpoint import CheckpointError

Network: TypeAlias = Any  # AlignModel, whose annotations fail strict type checking

# Not used: embeddings come from the hidden state of [CLS] itself, and the other counts training batches.
_UNUSED_WEIGHTS = re.compile(r"text_model\.pooler\..*|.*\.num_batches_tracked")
_CONVOLUTION_NORMS = {  # attribute names in modeling_align.py: each convolution and the norm that follows it
    "convolution": "batchnorm",
    "expand_conv": "expand_bn",
    "depthwise_conv": "depthwise_norm",
    "project_conv": "project_bn",
}


def load_network(folder: Path) -> Network:
    """Loads a checkpoint's AlignModel in float32 on the CPU.

    Raises:
        CheckpointError: Weights are missing, not finite or have wrong shapes, the modalities' dimensions
            differ, or the temperature is not a valid divisor.
    """
    load: Any = AlignModel.from_pretrained
    with quiet_transformers():
        try:
            config = _load_config(folder)
            model, report = load(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except CheckpointError:
            raise
        except Exception as error:  # untrusted files can cause any error
            raise CheckpointError(f"{folder} cannot be loaded: {one_line(error)}") from error
    missing = sorted(name for name in report["missing_keys"] if not _UNUSED_WEIGHTS.fullmatch(name))
    if missing:  # transformers would initialize them randomly
        raise CheckpointError(f"{folder} lacks {len(missing)} weights, such as {missing[0]}")
    image_dimension = model.vision_model.encoder.blocks[-1].projection.project_conv.out_channels
    check_dimensions(image_dimension, embedding_dimension(model))
    _check_weights(model)
    return model.eval()


def one_line(error: Exception) -> str:
    """Returns an error's type and message on one line; without its type a KeyError says little."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _load_config(folder: Path) -> Any:
    """Returns the configuration without settings that change only the form of outputs."""
    config: Any = AlignConfig.from_pretrained(folder, local_files_only=True)
    for name in ("text_config", "vision_config"):
        activation = getattr(config, name).hidden_act
        if activation not in ACT2FN:
            raise CheckpointError(
                f"config.json: {name}.hidden_act is {activation!r}, which is not supported; "
                f"supported: {', '.join(ACT2FN)}"
            )
    for section in (config, config.text_config, config.vision_config):
        section.return_dict = True
        section.output_hidden_states = section.output_attentions = False
        section.chunk_size_feed_forward = 0  # chunks must divide a text's length
    return config


def embedding_dimension(network: Network) -> int:
    """Returns the number of elements in an embedding."""
    return int(network.text_projection.out_features)


def optimized(network: Network) -> Network:
    """Optimizes a network in place without changing its results, and returns it.

    Folds batch normalization into the convolutions, removes the unused text pooler, pools over the whole
    image at the end (AlignModel fails if its window is smaller), and uses the channels-last layout.
    """
    network.text_model.pooler = None
    for module in list(network.vision_model.modules()):
        _fold_norms(module)
    is_mean = isinstance(network.vision_model.pooler, nn.AvgPool2d)
    network.vision_model.pooler = _MeanPooler() if is_mean else _MaxPooler()
    return network.to(memory_format=torch.channels_last)


def embed_pixel_values(network: Network, pixel_values: torch.Tensor) -> torch.Tensor:
    """Embeds (batch, 3, height, width) rescaled images, not normalized."""
    embeddings: torch.Tensor = network.vision_model(pixel_values=pixel_values).pooler_output
    return embeddings.flatten(1)


def embed_tokens(network: Network, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Embeds (batch, length) texts, not normalized."""
    hidden = network.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    embeddings: torch.Tensor = network.text_projection(hidden[:, 0])
    return embeddings


def channels(values: Any) -> torch.Tensor:
    """Returns a value per channel in a shape that fits (batch, 3, height, width)."""
    return torch.from_numpy(values).view(1, 3, 1, 1)


class _MeanPooler(nn.Module):
    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return activations.mean((2, 3), keepdim=True)


class _MaxPooler(nn.Module):
    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return activations.amax((2, 3), keepdim=True)


def _fold_norms(module: nn.Module) -> None:
    """Merges a module's convolutions with their norms; exact except for rounding (1e-6 of a unit vector)."""
    for convolution, norm in _CONVOLUTION_NORMS.items():
        if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
            setattr(
                module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
            )
            setattr(module, norm, nn.Identity())


def _check_weights(network: Network) -> None:
    for name, weight in network.state_dict().items():
        if not _UNUSED_WEIGHTS.fullmatch(name) and not torch.isfinite(weight).all():
            raise CheckpointError(f"the weight {name} has values that are not finite")
    check_temperature(network.temperature.item())


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' notices and progress bars."""
    settings: Any = transformers_logging
    verbosity, has_progress_bar = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        settings.set_verbosity(verbosity)
        if has_progress_bar:
            settings.enable_progress_bar()
