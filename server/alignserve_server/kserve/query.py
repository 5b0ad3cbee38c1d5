"""A `ModelInferRequest`, read and checked, except for the elements of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignserve_server.errors import InvalidArgument
from alignserve_server.kserve.models import REQUEST_PARAMETERS, Model, Output
from alignserve_server.kserve.parameters import Parameters
from alignserve_server.kserve.problems import MAX_ID_CHARACTERS, shown, unknown
from alignserve_server.kserve.tensors import RAW_ONLY, InputTensor, read_inputs


@dataclass(frozen=True, slots=True)
class Query:
    """What a request asks of a model."""

    model: Model
    id: str
    inputs: dict[str, InputTensor]  # all those of the model, until they are read
    outputs: Mapping[str, int]  # names, and how many classes to return instead of the array; 0 for the array
    parameters: Parameters
    is_raw: bool  # whether the outputs are

    def item_count(self, limit: int) -> int:
        """Returns the first dimension of the first input, which has not been checked, up to a limit."""
        shape = self.inputs[self.model.inputs[0].name].shape
        return min(max(shape[0], 0), limit) if shape else 0

    @property
    def priority(self) -> str | None:
        """The name of the priority; None for the caller's default."""
        return self.parameters.priority("priority")

    @property
    def timeout_seconds(self) -> float | None:
        """The time until the deadline, from now; None if there is none."""
        return self.parameters.seconds("timeout")

    @property
    def marks_final_response(self) -> bool:
        """Whether the last response of a stream to it, which is the only one, is marked as such."""
        return self.parameters.flag("triton_enable_empty_final_response")


def read_query(model: Model, request: Any) -> Query:
    """Reads a `ModelInferRequest`.

    Raises:
        InvalidArgument: It does not fit the model.
    """
    if len(request.id) > MAX_ID_CHARACTERS:
        raise InvalidArgument.at(
            "id", f"{len(request.id)} characters, limit {MAX_ID_CHARACTERS}; send a shorter one"
        )
    parameters = Parameters(request.parameters, REQUEST_PARAMETERS | model.parameters)
    inputs = read_inputs(request)
    expected = [tensor.name for tensor in model.inputs]
    for name in inputs:
        if name not in expected:
            raise InvalidArgument.at("inputs", unknown("input", name, expected))
    for name in expected:
        if name not in inputs:
            raise InvalidArgument.at("inputs", f"{name!r} is missing; send {' and '.join(expected)}")
    outputs = _read_outputs(model, request)
    datatypes = {output.datatype for output in model.outputs if output.name in outputs}
    is_raw = bool(request.raw_input_contents) or not datatypes.isdisjoint(RAW_ONLY)
    return Query(model, request.id, inputs, outputs, parameters, is_raw)


def _read_outputs(model: Model, request: Any) -> dict[str, int]:
    if not request.outputs:
        return {output.name: 0 for output in model.outputs if output.is_default}
    known = {output.name: output for output in model.outputs}
    outputs: dict[str, int] = {}
    for position, asked in enumerate(request.outputs):
        if asked.name not in known:
            raise InvalidArgument.at("outputs", unknown("output", asked.name, known))
        if asked.name in outputs:
            raise InvalidArgument.at("outputs", f"{shown(asked.name)} is asked for twice")
        outputs[asked.name] = _class_count(known[asked.name], asked, f"outputs[{position}].parameters")
    return outputs


def _class_count(output: Output, asked: Any, path: str) -> int:
    count = Parameters(asked.parameters, {"classification"}, path).count("classification")
    if count and not output.has_labels:
        raise InvalidArgument.at(f"{path}.classification", f"{output.name} has no labels; leave it out")
    return count
