"""Prepares the image network for OpenVINO's bfloat16, as `bfloat16` explains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from alignserve_server.model.runtimes import bfloat16
from alignserve_server.model.runtimes.openvino_quiet import ov

_NOT_COMPUTED = ("Const", "Parameter", "Result")
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_BLOCK = re.compile(r"\.vision_model\.encoder\.blocks\.(\d+)\b")
# OpenVINO's CPU plugin leaves a layer with this attribute in float32, whatever INFERENCE_PRECISION_HINT says.
_KEPT = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:dynamic"}
_UNBOUNDED = 1e30


def read_image_network(core: Any, path: Path) -> Any:
    """Reads the image network of a prepared checkpoint, to be compiled for bfloat16.

    Raises:
        RuntimeError: OpenVINO cannot read it.
        ElementTree.ParseError: It is not XML.
    """
    # A copy, which the network owns.
    weights = ov.Tensor(np.memmap(path.with_suffix(".bin"), np.uint8, mode="r"))
    network = core.read_model(_with_float32_layers(path), weights)
    for operation in network.get_ordered_ops():
        is_convolution = operation.get_type_name() in _CONVOLUTIONS
        if not is_convolution or _stays_in_float32(operation.get_friendly_name()):
            continue
        if operation.get_type_name() == "GroupConvolution":
            _balance(operation)
        _detach_bias(operation)
    network.validate_nodes_and_infer_types()
    return network


def _stays_in_float32(name: str) -> bool:
    """Returns whether a layer of that name is in the first blocks or outside all blocks."""
    block = _BLOCK.search(name)
    return block is None or int(block[1]) < bfloat16.FLOAT32_BLOCKS


def _with_float32_layers(path: Path) -> bytes:
    """Returns the network's description, in which the layers that stay in float32 are marked."""
    root = ElementTree.parse(path).getroot()  # noqa: S314 — the file's digest was verified, or it was made here
    for layer in root.iterfind("layers/layer"):
        if layer.get("type") not in _NOT_COMPUTED and _stays_in_float32(layer.get("name", "")):
            attributes = layer.find("rt_info")
            if attributes is None:
                attributes = ElementTree.Element("rt_info")
                layer.insert(1 if layer.find("data") is not None else 0, attributes)
            ElementTree.SubElement(attributes, "attribute", _KEPT)
    return ElementTree.tostring(root)


def _balance(convolution: Any) -> None:
    """Rounds the weights of a depthwise convolution so that the errors of each kernel cancel."""
    weights = convolution.input(1)
    source = weights.get_source_output().get_node()
    while source.get_type_name() in ("Convert", "Reshape"):  # of weights in float16
        source = source.input_value(0).get_node()
    if source.get_type_name() != "Constant":
        return
    kernels = source.data.reshape(len(source.data), -1).astype(np.float32)
    rounded = bfloat16.balanced(kernels).reshape(tuple(weights.get_shape()))
    weights.replace_source_output(ov.opset1.constant(rounded).output(0))


def _detach_bias(convolution: Any) -> None:
    """Makes OpenVINO add a convolution's bias in float32.

    It rounds a bias that is added to the convolution's own result, but not what is added to a later step's.
    The step between them here changes nothing and costs no time, since all three become one kernel.
    """
    (consumer, *others) = convolution.output(0).get_target_inputs()
    if not others and consumer.get_node().get_type_name() == "Add":
        unchanged = ov.opset1.clamp(convolution.output(0), -_UNBOUNDED, _UNBOUNDED)
        consumer.replace_source_output(unchanged.output(0))
