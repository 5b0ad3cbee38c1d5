"""Converts a checkpoint to OpenVINO models. A program that `preparation` runs.

python -m alignserve_server.model.runtimes.openvino_conversion CHECKPOINT FOLDER
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from alignserve_server.model.checkpoint import CheckpointError, open_checkpoint
from alignserve_server.model.preparation import INPUTS
from alignserve_server.model.prepared import IMAGE, TEXT
from alignserve_server.model.reference import make_reference
from alignserve_server.model.runtimes import network as networks
from alignserve_server.model.runtimes.network import Network
from alignserve_server.model.runtimes.openvino_quiet import ov
from alignserve_server.model.runtimes.runtime import Rescaling

_LAST_BLOCKS = 2  # of the image tower; another number needs another `calibration.LAYERS_VERSION`
_BLOCK = re.compile(r"\.blocks\.(\d+)\.")


def convert(checkpoint: Path, folder: Path) -> None:
    """Converts a checkpoint, with the inputs in a folder, into that folder.

    Raises:
        CheckpointError: The checkpoint's weights or its tokenizer cannot be served.
    """
    inputs = np.load(folder / INPUTS)
    rescaling = Rescaling(inputs["scale"], inputs["offset"])
    network = networks.load_network(checkpoint)
    reference = make_reference(open_checkpoint(checkpoint), network)
    reference.save(folder)
    network = networks.optimized(network)
    image, text = _image_model(network, rescaling, reference.image_size), _text_model(network)
    if "calibration" in inputs:
        image, text = _quantized(image, text, inputs["calibration"])
    for model, name in ((image, IMAGE), (text, TEXT)):
        in_float16 = inputs["weights"] == "float16" or _is_exact_in_float16(model)
        ov.save_model(model, folder / name, compress_to_fp16=in_float16)


def _is_exact_in_float16(model: Any) -> bool:
    """Returns whether all weights are exact in float16, as if stored so; then the file is half the size."""
    return all(map(_survives_float16, filter(_is_weight, model.get_ops())))


def _is_weight(operation: Any) -> bool:
    # OpenVINO does not convert single numbers, such as an epsilon, if their value would change.
    return bool(
        operation.get_type_name() == "Constant"
        and operation.get_element_type() == ov.Type.f32
        and operation.data.size > 1
    )


@np.errstate(over="ignore")  # values that are too large do not survive
def _survives_float16(constant: Any) -> bool:
    weights: NDArray[np.float32] = constant.data
    return np.array_equal(weights.astype(np.float16).astype(np.float32), weights)


def _image_model(network: Network, rescaling: Rescaling, size: tuple[int, int]) -> Any:
    """Returns a model from (batch, height, width, 3) uint8 pixels to embeddings."""
    height, width = size
    tower = _ImageTower(network, rescaling).eval()
    with torch.no_grad():
        return ov.convert_model(
            tower,
            example_input=torch.zeros(2, height, width, 3, dtype=torch.uint8),
            input=[([-1, height, width, 3], ov.Type.u8)],
        )


def _text_model(network: Network) -> Any:
    """Returns a model from (batch, length) input_ids and attention_mask to embeddings."""
    example = (torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[1, 1, 1], [1, 1, 0]]))
    tower = _TextTower(network).eval()
    with torch.no_grad():
        return ov.convert_model(
            tower, example_input=example, input=[([-1, -1], ov.Type.i64), ([-1, -1], ov.Type.i64)]
        )


def _quantized(image: Any, text: Any, pixels: NDArray[np.uint8]) -> tuple[Any, Any]:
    """Returns the models in int8.

    In the text tower only the weights are quantized in advance; activations are quantized at run time, in
    groups, which measures five times as accurate as calibrated ranges, and equally fast. OpenVINO does this
    only for matrix products, so the convolutions of the image tower need calibrated ranges. Its stem and its
    depthwise convolutions, whose channels differ widely in range, stay in float32: with them in int8,
    embeddings of unseen photos deviated by 43 degrees on one checkpoint. So do the last two blocks and the
    pooling: no layer after them averages out their errors.
    """
    import nncf  # only int8 needs it

    dataset = nncf.Dataset(pixels, lambda image_pixels: [image_pixels[None]])
    in_float32 = nncf.IgnoredScope(
        types=["GroupConvolution"],
        patterns=[
            r".*\.vision_model\.(embeddings|pooler)\W.*",
            *(rf".*\.blocks\.{number}\..*" for number in _last_blocks(image)),
        ],
    )
    return (
        nncf.quantize(image, dataset, subset_size=len(pixels), ignored_scope=in_float32),
        nncf.compress_weights(text, mode=nncf.CompressWeightsMode.INT8_SYM),
    )


def _last_blocks(image: Any) -> list[int]:
    """Returns the numbers of the last blocks of the image tower, fewer if it has fewer."""
    names = (operation.get_friendly_name() for operation in image.get_ops())
    return sorted({int(found[1]) for name in names if (found := _BLOCK.search(name))})[-_LAST_BLOCKS:]


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
    """Converts; exits if the parent process ends. The last line of standard error gives a failure's cause."""
    checkpoint, folder = map(Path, sys.argv[1:])
    threading.Thread(target=_end_with_parent, args=[folder], daemon=True).start()
    try:
        convert(checkpoint, folder)
    except CheckpointError as error:
        sys.exit(str(error))


def _end_with_parent(folder: Path) -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the other end closes, including when its process dies
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main()
