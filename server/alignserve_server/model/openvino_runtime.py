"""ALIGN on OpenVINO: CPUs, several times faster than torch there, and as exact in float32.

A checkpoint is converted once and kept in a cache folder, by its fingerprint, with what the reference makes
of the probe. A server that finds it there needs no torch.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# OpenVINO reports its use over the network, from a process that it forks, unless its reporter is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # Python's way to block an import
import openvino as ov

from alignserve_server.logs import get_logger
from alignserve_server.model.checkpoint import Checkpoint, CheckpointError
from alignserve_server.model.encoder import Embeddings, OutOfDeviceMemory
from alignserve_server.model.memory import drop_file_pages, trim_heap
from alignserve_server.model.runtime import (
    DtypeName,
    Loaded,
    Placement,
    Probe,
    Rescaling,
    RuntimeName,
    TokenArray,
    cpu_count,
)

_log = get_logger(__name__)

_PRECISIONS: dict[DtypeName, str] = {"float32": "f32", "bfloat16": "bf16"}
_CORES_PER_LANE = 4  # a forward of these networks gains little from more
_IMAGE, _TEXT, _FACTS, _REFERENCE = "image.xml", "text.xml", "facts.json", "reference.npy"


def load(
    checkpoint: Checkpoint, placement: Placement, rescaling: Rescaling, probe: Probe, cache_folder: Path
) -> Loaded:
    """Loads a checkpoint, converting it if that has not been done before.

    Raises:
        CheckpointError: Its weights cannot be served, or OpenVINO cannot convert them.
        ValueError: OpenVINO does not compute in that data type here.
    """
    core = ov.Core()
    _check_dtype(core, placement.dtype)
    fingerprint = checkpoint.fingerprint(runtime=f"openvino-{ov.get_version()}", dtype="float32")
    folder = cache_folder / "openvino" / fingerprint
    if not folder.is_dir():
        folder = _converted(checkpoint, rescaling, probe, folder)
    facts = json.loads((folder / _FACTS).read_text())
    runtime = OpenVinoRuntime(core, folder, placement)
    return Loaded(runtime, np.load(folder / _REFERENCE), facts["temperature"], facts["embedding_dimension"])


class OpenVinoRuntime:
    """Implements `Runtime` with OpenVINO's CPU plugin."""

    name: RuntimeName = "openvino"
    device = "cpu"

    def __init__(self, core: Any, folder: Path, placement: Placement) -> None:
        """Compiles the two models of a conversion. OpenVINO's classes ship no types."""
        self._folder = folder
        self.dtype = placement.dtype
        self.lanes = placement.lanes or max(1, cpu_count() // _CORES_PER_LANE)
        threads_per_lane = placement.threads_per_lane or max(1, cpu_count() // self.lanes)
        image, text = core.read_model(folder / _IMAGE), core.read_model(folder / _TEXT)
        self.memory_bytes = _constant_bytes(image) + _constant_bytes(text)
        options = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self.dtype],
            "NUM_STREAMS": self.lanes,
            "INFERENCE_NUM_THREADS": self.lanes * threads_per_lane,
            "ENABLE_CPU_PINNING": False,  # decoding and the event loop want the same cores
        }
        self._image = core.compile_model(image, "CPU", options)
        self._text = core.compile_model(text, "CPU", options)
        self._requests = threading.local()  # one of each model for every lane

    def enter_lane(self) -> None:
        """Makes the requests of the calling thread."""
        self._requests.image = self._image.create_infer_request()
        self._requests.text = self._text.create_infer_request()

    def release_memory(self) -> None:
        """Drops intermediate results, and the weights' file, which the compiled models have rearranged."""
        self._image.release_memory()
        self._text.release_memory()
        drop_file_pages(self._folder)
        trim_heap()

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> Embeddings:
        return self._infer("image", [pixels])

    def embed_tokens(self, input_ids: TokenArray, attention_mask: TokenArray) -> Embeddings:
        return self._infer("text", [input_ids, attention_mask])

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


def _check_dtype(core: Any, dtype: DtypeName) -> None:
    if dtype not in _PRECISIONS:
        raise ValueError(f"openvino does not compute in {dtype} on a CPU; use float32 or bfloat16")
    if dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("this CPU has no bfloat16 instructions; use float32")


def _converted(checkpoint: Checkpoint, rescaling: Rescaling, probe: Probe, folder: Path) -> Path:
    """Converts into the folder, or into a temporary one if that cannot be written; returns which."""
    _log.info("converting", model_id=checkpoint.model_id, runtime="openvino", cache_folder=str(folder.parent))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent))
    except OSError as error:
        _log.warning("cache_not_writable", cache_folder=str(folder.parent), reason=str(error))
        folder = draft = Path(tempfile.mkdtemp(prefix="alignserve-"))
    try:
        _convert(checkpoint, rescaling, probe, draft)
        if draft != folder:
            draft.rename(folder)  # whole or not at all, whoever else converts or is cut off
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same result
            raise
        shutil.rmtree(draft, ignore_errors=True)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return folder


def _convert(checkpoint: Checkpoint, rescaling: Rescaling, probe: Probe, folder: Path) -> None:
    # torch and transformers take seconds to import, and are needed only here
    from alignserve_server.model.network import (
        embedding_dimension,
        load_network,
        optimized,
        quiet_transformers,
        reference_embeddings,
    )
    from alignserve_server.model.openvino_conversion import convert_image_tower, convert_text_tower

    network = load_network(checkpoint.folder)
    facts = {
        "temperature": network.temperature.item(),
        "embedding_dimension": embedding_dimension(network),
    }
    reference = reference_embeddings(network, probe, rescaling)
    network = optimized(network)
    try:
        with warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")  # of tracing, which the comparison with the reference checks
            image = convert_image_tower(network, rescaling, probe)
            text = convert_text_tower(network, probe)
    except Exception as error:
        raise CheckpointError(
            f"openvino cannot convert {checkpoint.model_id}; use --runtime torch"
        ) from error
    ov.save_model(image, folder / _IMAGE, compress_to_fp16=False)
    ov.save_model(text, folder / _TEXT, compress_to_fp16=False)
    np.save(folder / _REFERENCE, reference)
    (folder / _FACTS).write_text(json.dumps(facts))


def _constant_bytes(model: Any) -> int:
    return sum(op.data.nbytes for op in model.get_ops() if op.get_type_name() == "Constant")
