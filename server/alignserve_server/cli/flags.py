"""Command-line flags for the settings, shared by every command that takes settings."""

from __future__ import annotations

import argparse
import stat
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from alignserve_server.settings import GROUPS, Settings
from alignserve_server.settings.renamed import REMOVED, RENAMED
from alignserve_server.settings.sources import flag

_METAVARS = {
    "listen": "HOST:PORT",
    "metrics_listen": "HOST:PORT",
    "http_listen": "HOST:PORT",
    "http_cors_origins": "ORIGIN[,ORIGIN…]",
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


def _add_outdated(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of earlier versions, for which `read_settings` reports what to use instead."""
    hidden: dict[str, Any] = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    for name in (*RENAMED, *REMOVED):
        if name in _OLD_SWITCHES:
            parser.add_argument(flag(name), dest=name, action=argparse.BooleanOptionalAction, **hidden)
        else:
            parser.add_argument(flag(name), dest=name, nargs="?", **hidden)


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
