"""ALIGN: builds an `Encoder` from a checkpoint's own preprocessing and a runtime of verified accuracy."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from alignserve_server.model.agreement import check_agreement
from alignserve_server.model.checkpoint import Checkpoint, CheckpointError
from alignserve_server.model.configuration import check_configuration
from alignserve_server.model.encoder import (
    Embeddings,
    GpuUse,
    ModelInfo,
    PixelValues,
    TokenIds,
)
from alignserve_server.model.input_spec import InputLimits, InputSpec
from alignserve_server.model.preparation import check_installed
from alignserve_server.model.prepared import PreparedCheckpoint
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from alignserve_server.model.preprocessing.texts import TextTokenizer
from alignserve_server.model.probe import Reference
from alignserve_server.model.proof import proved_cosine
from alignserve_server.model.runtimes.calibration import CalibrationImages
from alignserve_server.model.runtimes.runtime import (
    DtypeName,
    ExecutionConfig,
    KernelsSetting,
    LoadedRuntime,
    Rescaling,
    Runtime,
    RuntimeName,
    padded,
)
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

Auto: TypeAlias = Literal["auto"]

_DEVICE = re.compile(r"auto|cpu|cuda(?::(\d+))?")
_GPU_ADVICE = "with --device cuda the start fails instead; with --device cpu there is no warning"
_GPU_FILES = ("nvidia[0-9]*", "kfd", "dxg")  # device files of NVIDIA's and AMD's drivers, and of WSL


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a checkpoint is loaded.

    Attributes:
        runtime: `auto` is OpenVINO on a CPU, if it is installed, and torch otherwise.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the GPU if there is one.
        dtype: Of weights and computation. `auto` is float32 on a CPU, and float16 on a GPU, which rounds
            eight times finer than bfloat16. int8 requires OpenVINO and is used only if it is requested.
        lanes: Batches that run concurrently; None leaves it to the runtime.
        threads_per_lane: CPU threads per running batch; None leaves it to the runtime.
        max_image_batch_size: Batches of up to this many images are prepared for on a GPU; larger ones run,
            but slower.
        max_text_batch_size: The same for texts.
        cuda_graphs: Whether batches on a GPU are prepared for.
        cuda_kernels: Of the image tower on a GPU; `auto` is the fastest that needs no minutes to compile.
        min_cosine_similarity: Minimum cosine similarity to transformers' AlignModel in float32.
        cache_dir: For converted models and compiled kernels; None is `default_cache_dir`.
        calibration_dir: Images that resemble those of callers; required for int8.
        inputs: Limits on the inputs of callers.
    """

    runtime: RuntimeName | Auto = "auto"
    device: str = "auto"
    dtype: DtypeName | Auto = "auto"
    lanes: int | None = None
    threads_per_lane: int | None = None
    max_image_batch_size: int = 32
    max_text_batch_size: int = 32
    cuda_graphs: bool = True
    cuda_kernels: KernelsSetting = "auto"
    min_cosine_similarity: float = 0.999
    cache_dir: Path | None = None
    calibration_dir: Path | None = None
    inputs: InputLimits = field(default_factory=InputLimits)


def load_align(
    checkpoint: Checkpoint | PreparedCheckpoint,
    options: LoadOptions = LoadOptions(),
) -> AlignEncoder:
    """Loads a checkpoint and compares it with transformers' AlignModel in float32.

    If the lowest cosine similarity is below the minimum, falls back to a more precise configuration: float32
    on the same runtime, then float32 on torch.

    Args:
        checkpoint: As `prepared.resolve` returns it.
        options: How it is loaded.

    Raises:
        CheckpointError: Its weights or its preprocessing cannot be served.
        ValueError: The device does not exist, the runtime does not support the device or data type, or a
            requirement of int8 is missing.
    """
    images = options.inputs.image_preprocessor(checkpoint.image_processor)
    for loaded in _loadable(checkpoint, options, images):
        texts = TextTokenizer.of(loaded.reference, max_bytes=options.inputs.max_text_bytes)
        cosine = _proved_cosine(checkpoint, loaded, texts, options.min_cosine_similarity)
        if cosine >= options.min_cosine_similarity:
            break
        _log.warning(
            "cosine_similarity_too_low",
            runtime=loaded.runtime.name,
            dtype=loaded.runtime.dtype,
            min_cosine_similarity=cosine,
            limit=options.min_cosine_similarity,
        )
        loaded.runtime.close()  # the next one needs its memory
    else:
        raise CheckpointError(
            f"no runtime reaches a cosine similarity of {options.min_cosine_similarity} to transformers' "
            f"AlignModel; the last one {_found(cosine)}; lower --min-cosine-similarity to accept that"
        )
    _warn_of_unembedded(loaded.reference)
    spec = InputSpec.of(checkpoint.image_processor, loaded.reference)
    return AlignEncoder(images, texts, spec, loaded.runtime, _info(checkpoint, loaded, cosine))


def default_cache_dir() -> Path:
    """Returns the user's folder for what can be made again: `$XDG_CACHE_HOME/alignserve`."""
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "alignserve"
    try:
        home = Path.home()
    except RuntimeError:  # HOME is not set and the user is unknown; container engines then set HOME=/
        home = Path("/")
    return home / ".cache" / "alignserve"


class AlignEncoder:
    """Implements `Encoder`: the checkpoint's preprocessing, and a runtime."""

    def __init__(
        self,
        images: ImagePreprocessor,
        texts: TextTokenizer,
        spec: InputSpec,
        runtime: Runtime,
        info: ModelInfo,
    ) -> None:
        self.info = info
        self.input_spec = spec.to_bytes
        self.lanes = runtime.lanes
        self.has_parallel_lanes = runtime.has_parallel_lanes
        self.lanes_per_modality = runtime.lanes_per_modality
        self.is_measurable = True
        self.preprocess_image = images
        self.tokenize = texts
        self.enter_lane = runtime.enter_lane
        self.release_memory = runtime.release_memory
        self.device_seconds = runtime.device_seconds
        self._runtime = runtime

    @property
    def device_memory_bytes(self) -> int:
        """Memory that the networks hold on the device."""
        return self._runtime.memory_bytes

    @property
    def gpu(self) -> GpuUse | None:
        """How the runtime uses a GPU; None on a CPU."""
        return self._runtime.gpu

    def encode_images(self, batch: Sequence[PixelValues]) -> Embeddings:
        """Embeds images of one size. Raises `OutOfDeviceMemory`, `DeviceLost` or the runtime's own errors."""
        return self._runtime.embed_pixels(batch)

    def encode_texts(self, batch: Sequence[TokenIds]) -> Embeddings:
        """Embeds texts, padded to the longest. Raises as `encode_images` does."""
        return self._runtime.embed_tokens(*padded(batch))


class DeviceChoice(NamedTuple):
    """A device, and why it is not a GPU.

    Attributes:
        name: `cpu` or `cuda:N`.
        reason: Why it is the CPU, if it is.
        advice: What to do about it; empty if there is no GPU that could be used.
    """

    name: str
    reason: str = ""
    advice: str = ""


def resolved_device(device: str, runtime: RuntimeName | Auto = "auto", *, is_tried: bool = True) -> str:
    """Resolves a device as `device_choice` does.

    If `auto` becomes `cpu` although there is a GPU, a warning says why.

    Raises:
        ValueError: As for `device_choice`.
    """
    choice = device_choice(device, runtime, is_tried=is_tried)
    if choice.advice:
        _log.warning("gpu_unused", reason=choice.reason, advice=choice.advice)
    return choice.name


def device_choice(
    device: str, runtime: RuntimeName | Auto = "auto", *, is_tried: bool = True
) -> DeviceChoice:
    """Resolves `auto`, `cpu`, `cuda` or `cuda:N` to `cpu` or `cuda:N`.

    Args:
        device: The name to resolve.
        runtime: The runtime that will use it.
        is_tried: Whether the GPU may be used to find out whether it works; see `cuda_device`.

    Raises:
        ValueError: The device does not exist or cannot be used, or the runtime does not support it.
    """
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise ValueError(f"device {device!r} is not one of auto, cpu, cuda, cuda:N")
    if runtime == "openvino" and device.startswith("cuda"):
        raise ValueError(f"openvino runs on a CPU, not on {device}; use --runtime torch")
    if device == "cpu" or runtime == "openvino":
        return DeviceChoice("cpu", f"--{'device' if device == 'cpu' else 'runtime'} says so")
    if device == "auto" and not _has_gpu_file():  # known without torch, which takes seconds to import
        return DeviceChoice("cpu", f"no GPU driver has a device in /dev ({', '.join(_GPU_FILES)})")
    if device == "auto" and importlib.util.find_spec("torch") is None:
        return DeviceChoice("cpu", "torch is not installed", "pip install 'alignserve[server,torch]'")
    check_installed(["torch"], extra="torch", why=f"for --device {device}")
    from alignserve_server.model.runtimes.cuda_devices import cuda_device

    if device != "auto":
        return DeviceChoice(cuda_device(int(match[1] or 0), is_tried=is_tried))
    try:
        return DeviceChoice(cuda_device(0, is_tried=is_tried))
    except ValueError as error:
        return DeviceChoice("cpu", str(error), _GPU_ADVICE)


def _has_gpu_file() -> bool:
    return any(any(Path("/dev").glob(name)) for name in _GPU_FILES)


def runtime_choices(
    runtime: RuntimeName | Auto, device: str, dtype: DtypeName | Auto
) -> list[tuple[RuntimeName, DtypeName]]:
    """Returns the configurations to try: the chosen one first, then more precise ones.

    Raises:
        ValueError: The runtime does not support the data type.
    """
    if runtime == "auto":
        has_openvino = importlib.util.find_spec("openvino") is not None
        runtime = "openvino" if device == "cpu" and has_openvino and dtype != "float16" else "torch"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "float16"
    if dtype == "int8" and runtime == "torch":
        raise ValueError("the torch runtime does not support int8; use --runtime openvino, on a CPU")
    choices: list[tuple[RuntimeName, DtypeName]] = [
        (runtime, dtype),
        (runtime, "float32"),
        ("torch", "float32"),
    ]
    return list(dict.fromkeys(choices))


def prepared_choices(
    checkpoint: PreparedCheckpoint, runtime: RuntimeName | Auto, device: str, dtype: DtypeName | Auto
) -> list[tuple[RuntimeName, DtypeName]]:
    """Returns the configurations to try for a prepared checkpoint, which supports only OpenVINO.

    Raises:
        ValueError: It does not support the runtime, the device or the data type.
    """
    if runtime == "torch" or device not in ("auto", "cpu"):
        asked = "--runtime torch" if runtime == "torch" else f"--device {device}"
        raise ValueError(
            f"{checkpoint.folder} is prepared for OpenVINO on a CPU; for {asked} use the checkpoint that it "
            f"was prepared from ({checkpoint.model_id})"
        )
    exact = next(iter(checkpoint.fingerprints))
    chosen = exact if dtype == "auto" else dtype
    if chosen not in checkpoint.fingerprints:
        supported = " and ".join(checkpoint.fingerprints)
        raise ValueError(f"{checkpoint.folder} is prepared for dtype {supported}, not for {dtype}")
    return list(dict.fromkeys([("openvino", chosen), ("openvino", exact)]))


def check_runtime_installed(name: RuntimeName) -> None:
    """Raises ValueError if a package that the runtime needs is missing."""
    if name == "torch":
        check_installed(["torch", "transformers"], extra="torch", why="for --runtime torch")
    else:
        why = "for --runtime openvino, if not for --runtime torch"
        check_installed(["openvino"], extra="server", why=why)


def _calibration(folder: Path | None, preprocess: ImagePreprocessor) -> CalibrationImages:
    if folder is None:
        raise ValueError(
            "int8 needs to see images like those that callers send; put some dozens or more in a folder and "
            "set --calibration-dir"
        )
    return CalibrationImages(folder, preprocess)


def _loadable(
    checkpoint: Checkpoint | PreparedCheckpoint, options: LoadOptions, images: ImagePreprocessor
) -> Iterator[LoadedRuntime]:
    """Loads the configurations to try, the preferred one first."""
    if isinstance(checkpoint, Checkpoint):
        check_configuration(checkpoint.config)
        check_agreement(checkpoint)
        target = resolved_device(options.device, options.runtime)
        choices = runtime_choices(options.runtime, target, options.dtype)
        calibration = _calibration(options.calibration_dir, images) if options.dtype == "int8" else None
    else:
        target, calibration = "cpu", None
        choices = prepared_choices(checkpoint, options.runtime, options.device, options.dtype)
    for name, precise in choices:
        execution = ExecutionConfig(
            target,
            precise,
            options.lanes,
            options.threads_per_lane,
            options.max_image_batch_size,
            options.max_text_batch_size,
            cuda_graphs=options.cuda_graphs,
            cuda_kernels=options.cuda_kernels,
            cache_dir=options.cache_dir or default_cache_dir(),
        )
        try:
            loaded = _load(name, checkpoint, execution, images, options.cache_dir, calibration)
        except CheckpointError as error:
            if options.runtime != "auto" or (name, precise) == choices[-1]:
                raise
            _log.warning("runtime_unavailable", runtime=name, reason=str(error))
            continue
        yield loaded


def _load(
    name: RuntimeName,
    checkpoint: Checkpoint | PreparedCheckpoint,
    execution: ExecutionConfig,
    images: ImagePreprocessor,
    cache_dir: Path | None,
    calibration: CalibrationImages | None,
) -> LoadedRuntime:
    check_runtime_installed(name)
    if isinstance(checkpoint, Checkpoint) and name == "torch":
        from alignserve_server.model.runtimes import torch_cpu

        return torch_cpu.load(checkpoint, execution, Rescaling(images.scale, images.offset))
    from alignserve_server.model.runtimes import openvino as openvino_runtime
    from alignserve_server.model.runtimes.openvino_cache import prepared_form

    if isinstance(checkpoint, PreparedCheckpoint):
        return openvino_runtime.load(checkpoint, execution)
    images_of_int8 = calibration if execution.dtype == "int8" else None
    with prepared_form(checkpoint, cache_dir or default_cache_dir(), images_of_int8) as prepared:
        return openvino_runtime.load(prepared, execution)


def _proved_cosine(
    checkpoint: Checkpoint | PreparedCheckpoint, loaded: LoadedRuntime, texts: TextTokenizer, least: float
) -> float:
    """Returns the lowest cosine with the reference; see `proof.proved_cosine`."""
    # With limits for the probe's own images, independent of those for callers.
    images = InputLimits().image_preprocessor(checkpoint.image_processor)
    return proved_cosine(loaded.runtime, loaded.reference, images, texts, least)


def _found(cosine: float) -> str:
    return "returned numbers that are not finite" if math.isnan(cosine) else f"reaches {cosine:.6f}"


def _warn_of_unembedded(reference: Reference) -> None:
    tokens = reference.unembedded_tokens
    if tokens:
        _log.warning(
            "tokens_without_embedding",
            count=len(tokens),
            examples=list(tokens[:5]),
            vocabulary_rows=reference.vocabulary_rows,
            advice="texts with them are refused with TEXT_UNSUPPORTED",
        )


def _info(checkpoint: Checkpoint | PreparedCheckpoint, loaded: LoadedRuntime, cosine: float) -> ModelInfo:
    runtime, reference = loaded.runtime, loaded.reference
    return ModelInfo(
        model_id=checkpoint.model_id,
        model_revision=checkpoint.revision,
        fingerprint=loaded.fingerprint,
        runtime=runtime.name,
        dtype=runtime.dtype,
        device=runtime.device,
        embedding_dimension=reference.embedding_dimension,
        temperature=reference.temperature,
        max_text_tokens=reference.max_text_tokens,
        min_cosine_similarity=cosine,
    )
