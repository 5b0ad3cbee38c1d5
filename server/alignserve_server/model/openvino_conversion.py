"""Converts a checkpoint into OpenVINO models. A program, which `openvino_cache` runs.

python -m alignserve_server.model.openvino_conversion CHECKPOINT FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alignserve_server.model import network as networks
from alignserve_server.model.checkpoint import CheckpointError
from alignserve_server.model.network import Network
from alignserve_server.model.openvino_cache import FACTS, IMAGE, INPUTS, REFERENCE, TEXT
from alignserve_server.model.openvino_quiet import ov
from alignserve_server.model.runtime import Probe, Rescaling


def convert(checkpoint: Path, folder: Path) -> None:
    """Converts by the inputs in a folder, into that folder.

    Raises:
        CheckpointError: The checkpoint's weights cannot be served.
    """
    inputs = np.load(folder / INPUTS)
    rescaling = Rescaling(inputs["scale"], inputs["offset"])
    probe = Probe(inputs["pixels"], inputs["input_ids"], inputs["attention_mask"])
    network = networks.load_network(checkpoint)
    facts = {
        "temperature": network.temperature.item(),
        "embedding_dimension": networks.embedding_dimension(network),
    }
    np.save(folder / REFERENCE, networks.reference_embeddings(network, probe, rescaling))
    network = networks.optimized(network)
    image, text = _image_model(network, rescaling, probe), _text_model(network, probe)
    if "calibration" in inputs:
        image, text = _quantized(image, text, inputs["calibration"])
    ov.save_model(image, folder / IMAGE, compress_to_fp16=False)
    ov.save_model(text, folder / TEXT, compress_to_fp16=False)
    (folder / FACTS).write_text(json.dumps(facts))


def _image_model(network: Network, rescaling: Rescaling, probe: Probe) -> Any:
    """Returns a model from (batch, height, width, 3) uint8 pixels to embeddings."""
    _, height, width, _ = probe.pixels.shape
    tower = _ImageTower(network, rescaling).eval()
    with torch.no_grad():
        return ov.convert_model(
            tower,
            example_input=torch.from_numpy(probe.pixels),
            input=[([-1, height, width, 3], ov.Type.u8)],
        )


def _text_model(network: Network, probe: Probe) -> Any:
    """Returns a model from (batch, length) input_ids and attention_mask to embeddings."""
    example = (torch.from_numpy(probe.input_ids), torch.from_numpy(probe.attention_mask))
    tower = _TextTower(network).eval()
    with torch.no_grad():
        return ov.convert_model(
            tower, example_input=example, input=[([-1, -1], ov.Type.i64), ([-1, -1], ov.Type.i64)]
        )


def _quantized(image: Any, text: Any, pixels: NDArray[np.uint8]) -> tuple[Any, Any]:
    """Returns the models in int8.

    Of the text tower the weights alone: activations are quantized as they come, in groups, which measures
    five times as exact as ranges that were learnt before, and as fast. OpenVINO does that for matrix
    products only, so the convolutions of the image tower need the ranges. Its stem and its depthwise
    convolutions, whose channels differ widely in range, stay in float32: in int8 they turn photos that
    were not learnt from by 43 degrees, without them it is 3.
    """
    import nncf  # only int8 needs it

    dataset = nncf.Dataset(pixels, lambda image_pixels: [image_pixels[None]])
    in_float32 = nncf.IgnoredScope(types=["GroupConvolution"], patterns=[r".*vision_model\.embeddings\..*"])
    return (
        nncf.quantize(image, dataset, subset_size=len(pixels), ignored_scope=in_float32),
        nncf.compress_weights(text, mode=nncf.CompressWeightsMode.INT8_SYM),
    )


class _ImageTower(nn.Module):
    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, network: Network, rescaling: Rescaling) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", networks.channels(rescaling.scale))
        self.register_buffer("offset", networks.channels(rescaling.offset))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        pixel_values = pixels.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.offset
        return networks.embed_pixel_values(self.network, pixel_values)


class _TextTower(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return networks.embed_tokens(self.network, input_ids, attention_mask)


def main() -> None:
    """Converts, and ends early with the process that asked for it; standard error's last line tells why."""
    checkpoint, folder = map(Path, sys.argv[1:])
    threading.Thread(target=_end_with_parent, args=[folder], daemon=True).start()
    try:
        convert(checkpoint, folder)
    except CheckpointError as error:
        sys.exit(str(error))


def _end_with_parent(folder: Path) -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the other end closes, also because its process has died
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main()
