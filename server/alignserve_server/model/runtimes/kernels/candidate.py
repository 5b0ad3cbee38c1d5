"""A forward that cannot run here."""


class Unavailable(Exception):
    """A package, a compiler, or support for this network is missing; the message says which."""
