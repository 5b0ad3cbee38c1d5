"""Settings on the command line: their flags in `--help`, and the command that shows the effective values."""

from __future__ import annotations

import argparse
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from alignserve_server.cli.command import command_parser
from alignserve_server.settings import GROUPS, Settings
from alignserve_server.settings.renamed import REMOVED, RENAMED
from alignserve_server.settings.sources import Given, flag

_EXAMPLES = """\
examples:
  alignserve-server settings                                    all settings
  alignserve-server settings --config server.toml --lanes 2     what the server would use with these flags
  alignserve-server settings --format toml >server.toml         write a file for --config
"""
_METAVARS = {
    "listen": "HOST:PORT",
    "metrics_listen": "HOST:PORT",
    "checkpoint": "ID|DIR",
    "revision": "REVISION",
    "device": "DEVICE",
    "extra_image_formats": "FORMAT[,FORMAT…]",
}
_METAVARS_BY_ENDING = {
    "_bytes": "BYTES",
    "_seconds": "SECONDS",
    "_pixels": "PIXELS",
    "_dir": "DIR",
    "_ratio": "RATIO",
    "_similarity": "RATIO",
}
_OLD_SWITCHES = ("metrics", "warmup")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each setting, in groups. The result of parsing contains only flags that were given."""
    group: argparse._ArgumentGroup | None = None
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            group = parser.add_argument_group(GROUPS[name])
        assert group is not None  # noqa: S101 — the first setting starts a group
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": _help(field)}
        if field.annotation is bool:
            group.add_argument(flag(name), action=argparse.BooleanOptionalAction, **options)
        else:
            group.add_argument(flag(name), metavar=_metavar(name, field), **options)
    _add_outdated(parser)


def _add_outdated(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of earlier versions, for which `read_settings` reports what to use instead."""
    hidden: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    for name in (*RENAMED, *REMOVED):
        if name in _OLD_SWITCHES:
            parser.add_argument(flag(name), dest=name, action=argparse.BooleanOptionalAction, **hidden)
        else:
            parser.add_argument(flag(name), dest=name, nargs="?", **hidden)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `alignserve-server settings`, without the settings themselves."""
    result = command_parser(
        "settings",
        "Shows the effective settings and where each one was given.",
        _EXAMPLES,
        usage="%(prog)s [--format table|toml|json] [--config FILE] [settings]",
    )
    result.add_argument(
        "--format",
        choices=_FORMATS,
        default="table",
        help="output format; toml can be used as a file for --config (default: table)",
    )
    return result


def show(settings: Settings, given: Mapping[str, Given], output_format: str) -> str:
    """Returns the settings as text, each with the place where it was given."""
    values = settings.model_dump(mode="json")
    places = {name: given[name].place if name in given else "default" for name in values}
    return _FORMATS[output_format](values, places)


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    if field.default is None or "default:" in text:
        return text
    default = ("on" if field.default else "off") if isinstance(field.default, bool) else field.default
    return f"{text} (default: {default})"


def _metavar(name: str, field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    if name in _METAVARS:
        return _METAVARS[name]
    for ending, metavar in _METAVARS_BY_ENDING.items():
        if name.endswith(ending):
            return metavar
    return "FILE" if "Path" in str(field.annotation) else "N"


def _table(values: Mapping[str, Any], places: Mapping[str, str]) -> str:
    shown = {name: _toml_value(value) for name, value in values.items()}
    name_width = max(map(len, shown))
    value_width = max(map(len, shown.values()))
    lines = []
    for name, value in shown.items():
        if name in GROUPS:
            lines += ["", GROUPS[name]]
        lines.append(f"  {name:{name_width}}  {value:{value_width}}  {places[name]}")
    return "\n".join(lines[1:])


def _toml(values: Mapping[str, Any], places: Mapping[str, str]) -> str:
    lines = []
    for name, value in values.items():
        comment = "# " if value is None and Settings.model_fields[name].default is None else ""
        lines.append(f"{comment}{name} = {_toml_value(value)}  # {places[name]}")
    return "\n".join(lines)


def _json(values: Mapping[str, Any], places: Mapping[str, str]) -> str:
    entries = {
        name: {"value": "inf" if value == math.inf else value, "from": places[name]}
        for name, value in values.items()
    }
    return json.dumps(entries, indent=2)


def _toml_value(value: Any) -> str:
    if value is None:
        return '"none"'
    return str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


_FORMATS = {"table": _table, "toml": _toml, "json": _json}


def config_file(text: str) -> Path:
    """Returns the path given by `--config`. Raises ArgumentTypeError if it is not a file."""
    path = Path(text)
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError as error:
        raise argparse.ArgumentTypeError(f"{text}: no such file") from error
    except OSError as error:  # its directory may not be searched
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error
    if not is_file:
        raise argparse.ArgumentTypeError(f"{text}: not a file")
    return path
