"""The command `alignserve-server check`: examines a deployment and says what is wrong with it."""

from alignserve_server.cli.check.command import check, parser

__all__ = ["check", "parser"]
