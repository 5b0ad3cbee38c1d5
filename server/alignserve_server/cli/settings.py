"""The command `alignserve-server settings`: shows the effective settings and where each one was given."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from typing import Any

from alignserve_server.cli.command import command_parser
from alignserve_server.settings import GROUPS, Settings
from alignserve_server.settings.sources import Given

_EXAMPLES = """\
examples:
  alignserve-server settings                                    all settings
  alignserve-server settings --config server.toml --lanes 2     what the server would use with these flags
  alignserve-server settings --format toml >server.toml         write a file for --config
"""


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
