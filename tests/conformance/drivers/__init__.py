"""Drivers that live here: those of the Python client."""
