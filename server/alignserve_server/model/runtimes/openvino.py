"""ALIGN on OpenVINO: on CPUs it is faster than torch, and equally accurate in float32.

It loads prepared checkpoints, and does not need torch.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from numpy.typing import NDArray

from alignserve_server.host.cores import cpu_count
from alignserve_server.model.checkpoint_files import CheckpointError
from alignserve_server.model.encoder import Embeddings, GpuUse, OutOfDeviceMemory, PixelValues
from alignserve_server.model.prepared import IMAGE, TEXT, PreparedCheckpoint
from alignserve_server.model.probe import Reference
from alignserve_server.model.runtimes.memory import drop_file_pages, trim_heap
from alignserve_server.model.runtimes.openvino_bfloat16 import read_image_network
from alignserve_server.model.runtimes.openvino_quiet import ov
from alignserve_server.model.runtimes.runtime import (
    DtypeName,
    ExecutionConfig,
    LoadedRuntime,
    PreparedShape,
    RuntimeName,
    TokenArray,
    stacked,
)

_PRECISIONS: dict[DtypeName, str] = {
    "float32": "f32",
    "bfloat16": "bf16",
    "int8": "f32",
}  # int8: of the rest of the network
_CAPABILITIES: dict[DtypeName, str] = {"float32": "FP32", "bfloat16": "BF16", "int8": "INT8"}
_QUANTIZATION_GROUP_SIZE = 128  # activations that share a scale; as accurate as 32, and measured faster
_CORES_PER_LANE = 4  # more cores hardly speed up a forward of these networks


def load(prepared: PreparedCheckpoint, execution: ExecutionConfig) -> LoadedRuntime:
    """Loads a prepared checkpoint.

    Raises:
        CheckpointError: The networks or the reference are invalid.
        ValueError: OpenVINO does not support the data type on this CPU.
    """
    core = ov.Core()
    _check_dtype(core, execution.dtype)
    reference = Reference.load(prepared.folder)
    for name in (IMAGE, TEXT):
        _check_network(prepared.folder / name)
    try:
        runtime = OpenVinoRuntime(core, prepared.folder, execution)
    except (RuntimeError, ParseError) as error:
        raise CheckpointError(
            f"OpenVINO cannot load the networks in {prepared.folder}: {' '.join(str(error).split())[:300]}"
        ) from error
    return LoadedRuntime(runtime, reference, prepared.fingerprint(execution.dtype))


class OpenVinoRuntime:
    """Implements `Runtime` with OpenVINO's CPU plugin."""

    name: RuntimeName = "openvino"
    device = "cpu"
    has_parallel_lanes = True
    lanes_per_modality: int | None = None
    prepared_shapes: Sequence[PreparedShape] = ()
    gpu: GpuUse | None = None

    def __init__(self, core: Any, folder: Path, execution: ExecutionConfig) -> None:
        """Compiles the two models of a conversion. OpenVINO's classes have no type annotations."""
        self._folder = folder
        self.dtype = execution.dtype
        self.lanes = execution.lanes or max(1, cpu_count() // _CORES_PER_LANE)
        threads_per_lane = execution.threads_per_lane or max(1, cpu_count() // self.lanes)
        read_image = read_image_network if self.dtype == "bfloat16" else ov.Core.read_model
        image, text = read_image(core, folder / IMAGE), core.read_model(folder / TEXT)
        self.memory_bytes = _constant_bytes(image) + _constant_bytes(text)
        options = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self.dtype],
            "NUM_STREAMS": self.lanes,
            "INFERENCE_NUM_THREADS": self.lanes * threads_per_lane,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _QUANTIZATION_GROUP_SIZE,  # applies only to int8 weights
            "ENABLE_CPU_PINNING": False,  # decoding and the event loop need the same cores
        }
        self._image = core.compile_model(image, "CPU", options)
        self._text = core.compile_model(text, "CPU", options)
        self._requests = threading.local()  # per lane, one for each model

    def enter_lane(self) -> None:
        """Creates the calling thread's inference requests."""
        self._requests.image = self._image.create_infer_request()
        self._requests.text = self._text.create_infer_request()

    def release_memory(self) -> None:
        """Drops intermediate results, and the weights file, which the compiled models have copied."""
        self._image.release_memory()
        self._text.release_memory()
        drop_file_pages(self._folder)
        trim_heap()

    def drop(self, shape: PreparedShape) -> None:
        """Has nothing to drop."""

    def close(self) -> None:
        """Frees the compiled models."""
        del self._image, self._text, self._requests

    def embed_pixels(self, batch: Sequence[PixelValues]) -> Embeddings:
        return self._infer("image", [stacked(batch)])

    def embed_tokens(self, input_ids: TokenArray, attention_mask: TokenArray) -> Embeddings:
        return self._infer("text", [input_ids, attention_mask])

    def device_seconds(self) -> float | None:
        """Returns None: a call's duration is the CPU's time."""
        return None

    def _infer(self, model: str, inputs: list[NDArray[Any]]) -> Embeddings:
        if not hasattr(self._requests, model):
            self.enter_lane()
        try:
            results = getattr(self._requests, model).infer(inputs, share_inputs=True)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or "bad_alloc" in str(error) or "allocate" in str(error):
                raise OutOfDeviceMemory(str(error)) from error
            raise
        embeddings: Embeddings = results[0]
        return embeddings


def _check_network(path: Path) -> None:
    """Refuses files that OpenVINO would pass to its frontends for other frameworks."""
    with path.open("rb") as file:
        if not file.read(5) == b"<?xml":
            raise CheckpointError(f"{path} is not an OpenVINO network; prepare the checkpoint again")


def _check_dtype(core: Any, dtype: DtypeName) -> None:
    if dtype not in _PRECISIONS:
        raise ValueError(f"openvino does not support {dtype} on a CPU; use float32, bfloat16 or int8")
    if _CAPABILITIES[dtype] not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError(f"this CPU has no {dtype} instructions; use float32")


def _constant_bytes(model: Any) -> int:
    """Returns the size of the weights in memory, where OpenVINO expands float16 to float32."""
    return sum(
        op.data.nbytes * (2 if op.get_element_type() == ov.Type.f16 else 1)
        for op in model.get_ops()
        if op.get_type_name() == "Constant"
    )
