"""Generates a reference page from the protos: services, messages, fields and enums, with comments."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from deploy.docs.markdown import table
from deploy.docs.pages import ROOT

_PACKAGE = "alignserve.v1"
_Path = tuple[int, ...]  # of an element in its file, as in `SourceCodeInfo.Location.path`


def reference() -> str:
    """Returns the page, in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image.binpb")
        subprocess.run([sys.executable, ROOT / "protos/generate.py", "--image", image], check=True)
        files = FileDescriptorSet.FromString(image.read_bytes()).file
    (file,) = (file for file in files if file.package == _PACKAGE)
    comments = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}
    return "\n".join(_Page(file, comments).lines()) + "\n"


class _Page:
    def __init__(self, file: FileDescriptorProto, comments: dict[_Path, str]) -> None:
        self._file = file
        self._comments = comments

    def lines(self) -> Iterator[str]:
        yield f"# {self._file.package}\n\nMade from the comments of [the proto]({self._file.name})."
        yield "[The API](README.md) explains compatibility, errors and streams.\n"
        for position, service in enumerate(self._file.service):
            yield self._section("##", service.name, (6, position))
            for number, method in enumerate(service.method):
                takes = "stream " * method.client_streaming + _linked(method.input_type)
                gives = "stream " * method.server_streaming + _linked(method.output_type)
                yield self._section("###", method.name, (6, position, 2, number), f"{takes} → {gives}\n\n")
        for position, message in enumerate(self._file.message_type):
            yield from self._message(message, message.name, (4, position))
        for position, enum in enumerate(self._file.enum_type):
            yield from self._enum(enum, enum.name, (5, position))

    def _message(self, message: DescriptorProto, name: str, path: _Path) -> Iterator[str]:
        yield self._section("##", name, path)
        rows = [
            (f"{field.number}", f"`{field.name}`", _type(message, field), self._cell((*path, 2, position)))
            for position, field in enumerate(message.field)
        ]
        yield table(("number", "field", "type", "meaning"), rows)
        for position, nested in enumerate(message.nested_type):
            yield from self._message(nested, f"{name}.{nested.name}", (*path, 3, position))
        for position, enum in enumerate(message.enum_type):
            yield from self._enum(enum, f"{name}.{enum.name}", (*path, 4, position))

    def _enum(self, enum: EnumDescriptorProto, name: str, path: _Path) -> Iterator[str]:
        yield self._section("##", name, path)
        rows = [
            (f"{value.number}", f"`{value.name}`", self._cell((*path, 2, position)))
            for position, value in enumerate(enum.value)
        ]
        yield table(("number", "value", "meaning"), rows)

    def _section(self, level: str, name: str, path: _Path, signature: str = "") -> str:
        comment = re.sub(r"^ ", "", self._comments.get(path, ""), flags=re.MULTILINE)
        return f"{level} {name}\n\n{signature}{comment.strip()}\n"

    def _cell(self, path: _Path) -> str:
        return " ".join(self._comments.get(path, "").replace("|", "\\|").split())


def _type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    name = _linked(field.type_name) if field.type_name else field.Type.Name(field.type)[5:].lower()
    if field.HasField("oneof_index") and not field.proto3_optional:
        return f"{name}, one of `{message.oneof_decl[field.oneof_index].name}`"
    return f"repeated {name}" if field.label == field.LABEL_REPEATED else name


def _linked(type_name: str) -> str:
    name = type_name.removeprefix(f".{_PACKAGE}.")
    return f"`{name[1:]}`" if name == type_name else f"[{name}](#{name.lower().replace('.', '')})"
