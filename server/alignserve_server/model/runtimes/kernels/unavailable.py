"""The error of kernels that cannot be used."""


class Unavailable(Exception):
    """A package, a compiler, or support for a network is missing; the message says which."""
