"""What clients can ask before they infer: the metadata and the configuration of a model."""

from __future__ import annotations

from typing import Any

from alignserve_server.api import ModelInfo, RequestLimits
from alignserve_server.kserve.messages import ModelConfigResponse, ModelMetadataResponse
from alignserve_server.kserve.models import VERSION, Model, Tensor
from alignserve_server.kserve.parameters import PRIORITIES

NAME = "alignserve"
# https://github.com/triton-inference-server/server/tree/main/docs/protocol; `schedule_policy` is priority and
# timeout.
EXTENSIONS = ("classification", "model_configuration", "parameters", "schedule_policy", "statistics")

_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}  # the others are TYPE_ and the datatype


def model_metadata(model: Model, info: ModelInfo) -> Any:
    """Returns the `ModelMetadataResponse` of a model."""
    return ModelMetadataResponse(
        name=model.name,
        versions=[VERSION],
        platform=NAME,
        inputs=[_tensor_metadata(tensor, info) for tensor in model.inputs],
        outputs=[_tensor_metadata(tensor, info) for tensor in model.outputs],
    )


def model_config(model: Model, info: ModelInfo, limits: RequestLimits) -> Any:
    """Returns the `ModelConfigResponse` of a model."""
    batching = {
        "priority_levels": len(PRIORITIES) - 1,
        "default_priority_level": 1,
    }
    return ModelConfigResponse(
        config={
            "name": model.name,
            "platform": NAME,
            "backend": NAME,
            "version_policy": {"specific": {"versions": [int(VERSION)]}},
            "max_batch_size": limits.max_client_batch_size if model.is_batched else 0,
            "input": [_tensor_config(model, tensor, info) for tensor in model.inputs],
            "output": [_tensor_config(model, tensor, info) for tensor in model.outputs],
            "dynamic_batching": batching,
            "model_transaction_policy": {"decoupled": False},
        }
    )


def _tensor_metadata(tensor: Tensor, info: ModelInfo) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape_with(info)}


def _tensor_config(model: Model, tensor: Tensor, info: ModelInfo) -> dict[str, Any]:
    shape = tensor.shape_with(info)
    return {
        "name": tensor.name,
        "data_type": _CONFIG_TYPES.get(tensor.datatype, f"TYPE_{tensor.datatype}"),
        "dims": shape[1:] if model.is_batched else shape,  # a configuration leaves out the batch
    }
