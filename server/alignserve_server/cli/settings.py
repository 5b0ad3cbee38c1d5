"""Settings at the command line: their flags in `--help`, and the command that shows what is in force."""

from __future__ import annotations

import argparse
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from alignserve_server.settings import GROUPS, Settings
from alignserve_server.settings.sources import Given, flag

_EXAMPLES = """\
examples:
  alignserve-server settings                                    all of them
  alignserve-server settings --config server.toml --lanes 2     what a start with these flags would use
  alignserve-server settings --format toml >server.toml         as a file for --config
"""
_METAVARS = {
    "listen": "HOST:PORT",
    "metrics_listen": "HOST:PORT",
    "checkpoint": "FOLDER|ID",
    "revision": "REVISION",
    "device": "DEVICE",
    "image_formats": "FORMAT[,FORMAT…]",
}
_UNITS = {"_bytes": "BYTES", "_seconds": "SECONDS", "_ms": "MS", "_pixels": "PIXELS", "_folder": "FOLDER"}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each setting, in groups; those that are not given leave no trace in what is parsed."""
    group: argparse._ArgumentGroup | None = None
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            group = parser.add_argument_group(GROUPS[name])
        assert group is not None  # noqa: S101 — the first setting begins a group
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": _help(field)}
        if field.annotation is bool:
            group.add_argument(flag(name), action=argparse.BooleanOptionalAction, **options)
        else:
            group.add_argument(flag(name), metavar=_metavar(name, field), **options)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of `alignserve-server settings`, for what is not a setting itself."""
    result = argparse.ArgumentParser(
        prog="alignserve-server settings",
        usage="%(prog)s [--format table|toml|json] [--config FILE] [settings]",
        description="Shows the settings that are in force, and where each one was given.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument(
        "--format",
        choices=_FORMATS,
        default="table",
        help="a table for people, TOML for --config, or JSON (default: table)",
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
    for ending, unit in _UNITS.items():
        if name.endswith(ending):
            return unit
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
        comment = "# " if value is None else ""
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
        return "unset"
    return str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


_FORMATS = {"table": _table, "toml": _toml, "json": _json}


def config_file(text: str) -> Path:
    """Reads the value of `--config`. Raises ArgumentTypeError if it is not that of a file."""
    path = Path(text)
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError as error:
        raise argparse.ArgumentTypeError(f"{text}: there is no such file") from error
    except OSError as error:  # its folder may not be searched
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error
    if not is_file:
        raise argparse.ArgumentTypeError(f"{text}: it is not a file")
    return path
