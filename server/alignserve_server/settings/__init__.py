"""Settings: one definition for flags, environment variables and the settings file."""

from alignserve_server.settings.schema import (
    ACCESS,
    GROUPS,
    IMAGE_FORMATS,
    Reading,
    Settings,
    host_and_port,
    is_loopback,
    load_settings,
    read_settings,
)

__all__ = [
    "ACCESS",
    "GROUPS",
    "IMAGE_FORMATS",
    "Reading",
    "Settings",
    "host_and_port",
    "is_loopback",
    "load_settings",
    "read_settings",
]
