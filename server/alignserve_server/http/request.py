"""A request whose call has been admitted, for the dialects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.types import Scope

from alignserve_server.api import FieldPaths
from alignserve_server.http.body import Body
from alignserve_server.http.call import HttpCall
from alignserve_server.http.strict_json import parse_json
from alignserve_server.rpc.response_room import ResponseRoom


class HttpRequest:
    """A request: its body has been read, and its key, time and size have been checked."""

    def __init__(
        self, scope: Scope, call: HttpCall, media_type: str, body: Body, room: ResponseRoom, request_id: str
    ) -> None:
        self.media_type = media_type  # of the body, in lower case and without parameters
        self.room = room  # for the answer; given back once it is sent
        self.request_id = request_id
        self._body = body
        self._call = call
        self._scope = scope

    @property
    def headers(self) -> Headers:
        """The headers, by names in any case."""
        return self._call.headers

    @property
    def query(self) -> Mapping[str, str]:
        """The parameters behind the question mark, with a character for each byte."""
        text = self._scope["query_string"].decode("latin-1")
        return dict(parse_qsl(text, keep_blank_values=True, encoding="latin-1"))

    @property
    def path_parameters(self) -> Mapping[str, str]:
        """What the path has in place of `{name}` in the endpoint's path."""
        parameters: Mapping[str, str] = self._scope["path_params"]
        return parameters

    def name_fields(self, paths: FieldPaths) -> None:
        """Sets what errors call the fields of this request. Call it before `CallScope.context`."""
        self._call.paths = paths

    @property
    def body(self) -> bytes:
        """The body, until `release_body`."""
        return self._body.content

    def release_body(self) -> None:
        """Drops the body, once it has been parsed: another large one may arrive then."""
        self._body.release()

    def json(self) -> Any:
        """Returns the value of the body, and releases the body.

        Raises:
            RequestMalformed, BatchTooLarge: It is not JSON, or more than any valid request has.
        """
        value = parse_json(self.body)
        self.release_body()
        return value
