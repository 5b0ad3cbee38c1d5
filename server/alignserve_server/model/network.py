"""transformers' AlignModel, loaded from a checkpoint and prepared for inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers.models.align.modeling_align import AlignModel
from transformers.utils import logging as transformers_logging

from alignserve_server.model.checkpoint import CheckpointError
from alignserve_server.model.encoder import Embeddings
from alignserve_server.model.runtime import Probe, Rescaling

Network: TypeAlias = Any  # AlignModel, whose annotations do not survive strict checking

_UNUSED_WEIGHTS = "text_model.pooler."  # embeddings come from the hidden state of [CLS] itself
_CONVOLUTION_NORMS = {  # attribute names in modeling_align.py: each convolution and the norm that follows it
    "convolution": "batchnorm",
    "expand_conv": "expand_bn",
    "depthwise_conv": "depthwise_norm",
    "project_conv": "project_bn",
}


def load_network(folder: Path) -> Network:
    """Loads a checkpoint's AlignModel in float32 on the CPU.

    Raises:
        CheckpointError: Weights are missing or of other shapes, or modalities differ in dimension.
    """
    load: Any = AlignModel.from_pretrained
    with quiet_transformers():
        try:
            model, report = load(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{folder} does not load: {error}") from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(_UNUSED_WEIGHTS))
    if missing:  # transformers would leave them random
        raise CheckpointError(f"{folder} lacks {len(missing)} weights, such as {missing[0]}")
    _check_dimensions(model)
    return model.eval()


def embedding_dimension(network: Network) -> int:
    """Returns the number of elements in an embedding."""
    return int(network.text_projection.out_features)


def optimized(network: Network) -> Network:
    """Changes a network to one that computes the same with less work, and returns it.

    Batch normalization is folded into the convolutions, the unused text pooler goes, the average at the end
    is a plain mean where it spans the whole image, and the layout is channels-last.
    """
    network.text_model.pooler = None
    for module in list(network.vision_model.modules()):
        _fold_norms(module)
    network.vision_model.pooler = _AveragePooler(network.vision_model.pooler)
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


@torch.inference_mode()
def reference_embeddings(network: Network, probe: Probe, rescaling: Rescaling) -> Embeddings:
    """Returns what the network, as transformers made it, makes of the probe."""
    pixels = torch.from_numpy(probe.pixels).permute(0, 3, 1, 2).to(torch.float32)
    images = embed_pixel_values(network, pixels * channels(rescaling.scale) + channels(rescaling.offset))
    texts = embed_tokens(network, torch.from_numpy(probe.input_ids), torch.from_numpy(probe.attention_mask))
    return torch.cat([images, texts]).numpy()


def channels(values: Any) -> torch.Tensor:
    """Returns a value per channel in a shape that fits (batch, 3, height, width)."""
    return torch.from_numpy(values).view(1, 3, 1, 1)


class _AveragePooler(nn.Module):
    """Pools as its window does. In every known checkpoint the window is larger than what it pools."""

    def __init__(self, window: nn.AvgPool2d) -> None:
        super().__init__()
        self._window = window
        self._side = int(window.kernel_size)  # type: ignore[arg-type]  # an int in AlignVisionModel

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        if max(activations.shape[2:]) <= self._side:
            return activations.mean((2, 3), keepdim=True)
        pooled: torch.Tensor = self._window(activations)
        return pooled


def _fold_norms(module: nn.Module) -> None:
    """Merges a module's convolutions with their norms; exact but for rounding (1e-6 of a unit vector)."""
    for convolution, norm in _CONVOLUTION_NORMS.items():
        if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
            setattr(
                module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
            )
            setattr(module, norm, nn.Identity())


def _check_dimensions(network: Network) -> None:
    image_dimension = network.vision_model.encoder.blocks[-1].projection.project_conv.out_channels
    if image_dimension != embedding_dimension(network):
        raise CheckpointError(
            f"images have {image_dimension} dimensions and texts {embedding_dimension(network)}; "
            "projection_dim must equal the channels of the last vision block"
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' notes and progress bars out of the log."""
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
