"""Why a line of a batch has no embeddings: it is refused as over HTTP, or is not a request at all."""

from __future__ import annotations

from alignserve.errors import AlignserveError, InvalidArgumentError


class LineError(Exception):
    """The line is not a request: OpenAI's `error`, without a response.

    Attributes:
        code: OpenAI's name of the fault, such as `invalid_json_line`.
        message: What is wrong, for people.
        custom_id: Of the line, if it has one.
    """

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(code, message, custom_id)
        self.code = code
        self.message = message
        self.custom_id = custom_id


class Refusal(Exception):
    """The request is refused: a response with a status other than 200.

    Attributes:
        status: The HTTP status.
        code: The reason in lower case, such as `text_too_long`.
        message: What is wrong and what to do, for people.
        param: The field at fault, if it is known.
    """

    def __init__(self, message: str, *, code: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message, code, param, status)
        self.status = status
        self.code = code
        self.message = message
        self.param = param

    @classmethod
    def at(cls, path: str, message: str, code: str = "argument_invalid") -> Refusal:
        """Returns the refusal of an invalid field."""
        return cls(f"{path}: {message}", code=code, param=path)

    @classmethod
    def of(cls, error: AlignserveError, path: str) -> Refusal:
        """Returns the refusal for the input at `path`, which is invalid or failed in the model."""
        message, param = error.message, None
        if error.violations:
            param = path
            message = path + ": " + message.removeprefix(f"{error.violations[0].field}: ")
        code = (error.reason or error.code.name).lower()
        status = 400 if isinstance(error, InvalidArgumentError) else 500
        return cls(message, code=code, param=param, status=status)

    @property
    def body(self) -> dict[str, object]:
        """The body of the response, in OpenAI's form."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
