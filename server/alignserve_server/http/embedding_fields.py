"""Fields of embedding requests that several dialects have: model, dimensions and truncation."""

from __future__ import annotations

from alignserve_server.api import ModelInfo
from alignserve_server.errors import InvalidArgument, ModelUnknown
from alignserve_server.http.json_fields import Fields, shown, wrong_type


def check_model(name: str | None, model: ModelInfo, path: str = "model") -> None:
    """Checks that a request names the model being served: by its id, the id's last part, or not at all.

    Raises:
        ModelUnknown: It names another one.
    """
    if name and name.casefold() not in (model.model_id.casefold(), model_name(model).casefold()):
        raise ModelUnknown(f"{path}: {shown(name)} is not served; send {shown(model.model_id)}, or no model")


def model_name(model: ModelInfo) -> str:
    """Returns the last part of the model's id, as in `align-base`."""
    return model.model_id.rstrip("/").rpartition("/")[2]


def check_dimensions(fields: Fields, name: str, model: ModelInfo) -> None:
    """Checks that the dimension that a request asks for is the model's, or 0: infinity's client sends that.

    Raises:
        InvalidArgument: It is another one.
    """
    wanted = fields.integer(name)
    if wanted not in (None, 0, model.embedding_dimension):
        raise InvalidArgument.at(
            fields.path_of(name),
            f"{wanted} dimensions; the model has {model.embedding_dimension}, which cannot be changed",
        )


def truncates(fields: Fields, name: str, default: bool = False) -> bool:
    """Returns whether texts that are too long are cut: a boolean, or one of NONE and END.

    Raises:
        InvalidArgument: It is something else, such as START.
    """
    value = fields.value(name)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise wrong_type(fields.path_of(name), "a boolean, NONE or END", value)
    if value not in ("NONE", "END"):
        raise InvalidArgument.at(fields.path_of(name), f"{shown(value)} is not supported; send NONE or END")
    return value == "END"
