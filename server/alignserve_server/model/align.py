"""ALIGN on torch: the one module that imports torch and transformers.

The network is transformers' own AlignModel, with what serving allows: batch normalization folded into the
convolutions, images in channels-last layout, texts padded to the longest of their batch, no text pooler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers.models.align.modeling_align import AlignModel
from transformers.utils import logging as transformers_logging

from alignserve_server.model.checkpoint import Checkpoint, CheckpointError
from alignserve_server.model.decode import ImageDecoder
from alignserve_server.model.encoder import (
    Embeddings,
    ModelInfo,
    OutOfDeviceMemory,
    PixelValues,
    TokenizedText,
)
from alignserve_server.model.preprocess import ImagePreprocessor
from alignserve_server.model.tokenize import TextTokenizer, max_text_tokens

DtypeName: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]

_Untyped: TypeAlias = Any  # transformers, whose annotations do not survive strict checking

_UNUSED_WEIGHTS = "text_model.pooler."  # embeddings come from the hidden state of [CLS] itself
_CONVOLUTION_NORMS = {  # attribute names in modeling_align.py: each convolution and the norm that follows it
    "convolution": "batchnorm",
    "expand_conv": "expand_bn",
    "depthwise_conv": "depthwise_norm",
    "project_conv": "project_bn",
}
_CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")  # in texts of a plain RuntimeError


def load_align(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    dtype: DtypeName = "auto",
    threads_per_lane: int = 1,
    max_image_bytes: int = 10 << 20,
    max_image_pixels: int = 25_000_000,
    max_text_bytes: int = 32 << 10,
) -> AlignEncoder:
    """Loads a checkpoint onto a device.

    Args:
        checkpoint: As `resolve_checkpoint` returns it.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the GPU if there is one.
        dtype: Of weights and computation. `auto` is float32 on a CPU, where half precision rounds without
            gain on most models, and float16 on a GPU, which rounds eight times finer than bfloat16.
        threads_per_lane: CPU threads that one forward uses.
        max_image_bytes: Largest encoded image.
        max_image_pixels: Largest decoded image, width times height.
        max_text_bytes: Longest text, in bytes of UTF-8.

    Raises:
        CheckpointError: Weights are missing or of other shapes, or the preprocessing is not supported.
        ValueError: The device does not exist.
    """
    target = _device(device)
    dtype_name = _dtype_name(dtype, target)
    decoder = ImageDecoder(max_bytes=max_image_bytes, max_pixels=max_image_pixels)
    images = ImagePreprocessor(checkpoint.image_processor, decoder)
    max_tokens = max_text_tokens(checkpoint)
    texts = TextTokenizer(
        _load_tokenizer(checkpoint.folder),
        max_tokens=max_tokens,
        max_bytes=max_text_bytes,
        truncation_side=checkpoint.tokenizer_config.get("truncation_side", "right"),
    )
    model = _load_model(checkpoint.folder)
    info = ModelInfo(
        model_id=checkpoint.model_id,
        model_revision=checkpoint.revision,
        fingerprint=checkpoint.fingerprint(runtime="torch", dtype=dtype_name),
        runtime="torch",
        dtype=dtype_name,
        device=str(target),
        embedding_dimension=_embedding_dimension(model),
        temperature=model.temperature.item(),
        max_text_tokens=max_tokens,
    )
    return AlignEncoder(model, images, texts, info, threads_per_lane)


class AlignEncoder:
    """Implements `Encoder` with torch."""

    def __init__(
        self,
        model: _Untyped,
        images: ImagePreprocessor,
        texts: TextTokenizer,
        info: ModelInfo,
        threads_per_lane: int = 1,
    ) -> None:
        """Takes over a float32 model and moves it to the device and data type that `info` names."""
        self.info = info
        self.preprocess_image = images
        self.tokenize = texts
        self._threads_per_lane = threads_per_lane
        self._device = torch.device(info.device)
        self._dtype: torch.dtype = getattr(torch, info.dtype)
        self._pad_token_id = model.config.text_config.pad_token_id or 0
        self._model = _optimized(model).to(self._device, self._dtype)
        self._scale = _per_channel(images.scale, self._device)
        self._offset = _per_channel(images.offset, self._device)

    @property
    def device_memory_bytes(self) -> int:
        """Memory that torch has allocated on the GPU, or that the weights take on a CPU."""
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return sum(tensor.nbytes for tensor in self._model.state_dict().values())

    def enter_lane(self) -> None:
        """Limits the calling thread's forwards to the threads of a lane."""
        torch.set_num_threads(self._threads_per_lane)

    @torch.inference_mode()
    def encode_images(self, batch: Sequence[PixelValues]) -> Embeddings:
        """Embeds images of one size. Raises `OutOfDeviceMemory` or whatever torch raises."""
        with _memory_errors():
            pixels = torch.from_numpy(np.stack(batch)).to(self._device)
            # (batch, height, width, 3) seen as (batch, 3, height, width) is channels-last, without a copy
            pixel_values = pixels.permute(0, 3, 1, 2).to(torch.float32)
            pixel_values = pixel_values.mul_(self._scale).add_(self._offset).to(self._dtype)
            return _to_numpy(self._model.vision_model(pixel_values=pixel_values).pooler_output)

    @torch.inference_mode()
    def encode_texts(self, batch: Sequence[TokenizedText]) -> Embeddings:
        """Embeds texts, padded to the longest. Raises `OutOfDeviceMemory` or whatever torch raises."""
        with _memory_errors():
            input_ids, attention_mask = (torch.from_numpy(a).to(self._device) for a in self._padded(batch))
            output = self._model.text_model(input_ids=input_ids, attention_mask=attention_mask)
            return _to_numpy(self._model.text_projection(output.last_hidden_state[:, 0]))

    def _padded(self, batch: Sequence[TokenizedText]) -> tuple[np.ndarray, np.ndarray]:
        shape = len(batch), max(len(text.input_ids) for text in batch)
        input_ids = np.full(shape, self._pad_token_id, np.int64)
        attention_mask = np.zeros(shape, np.int64)
        for row, text in enumerate(batch):
            input_ids[row, : len(text.input_ids)] = text.input_ids
            attention_mask[row, : len(text.input_ids)] = 1
        return input_ids, attention_mask


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is none of auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda":
        return _cuda_device(device.index or 0)
    return device


def _cuda_device(index: int) -> torch.device:
    if index >= torch.cuda.device_count():
        raise ValueError(f"device cuda:{index} does not exist; torch sees {torch.cuda.device_count()} GPUs")
    # By default cuDNN rounds float32 convolutions to TF32, 10 bits of mantissa.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", index)


def _dtype_name(dtype: DtypeName, device: torch.device) -> str:
    if dtype != "auto":
        return dtype
    return "float16" if device.type == "cuda" else "float32"


def _load_tokenizer(folder: Path) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    from transformers import AutoTokenizer  # slow to import, and only old checkpoints need it

    return AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer


def _load_model(folder: Path) -> _Untyped:
    load: _Untyped = AlignModel.from_pretrained
    with _quiet_transformers():
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
    return model.eval()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    settings: _Untyped = transformers_logging
    verbosity, has_progress_bar = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        settings.set_verbosity(verbosity)
        if has_progress_bar:
            settings.enable_progress_bar()


def _embedding_dimension(model: _Untyped) -> int:
    text_dimension = model.text_projection.out_features
    image_dimension = model.vision_model.encoder.blocks[-1].projection.project_conv.out_channels
    if image_dimension != text_dimension:
        raise CheckpointError(
            f"images have {image_dimension} dimensions and texts {text_dimension}; "
            "projection_dim must equal the channels of the last vision block"
        )
    return int(text_dimension)


def _optimized(model: _Untyped) -> _Untyped:
    model.text_model.pooler = None
    for module in list(model.vision_model.modules()):
        _fold_norms(module)
    return model.to(memory_format=torch.channels_last)


def _fold_norms(module: nn.Module) -> None:
    """Merges a module's convolutions with their norms; exact but for rounding (1e-6 of a unit vector)."""
    for convolution, norm in _CONVOLUTION_NORMS.items():
        if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
            setattr(
                module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
            )
            setattr(module, norm, nn.Identity())


def _per_channel(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).to(device).view(1, 3, 1, 1)


def _to_numpy(embeddings: torch.Tensor) -> Embeddings:
    return embeddings.to(torch.float32).cpu().numpy()


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfDeviceMemory(str(error)) from error
    except RuntimeError as error:
        if any(text in str(error) for text in _CPU_OUT_OF_MEMORY):
            raise OutOfDeviceMemory(str(error)) from error
        raise
