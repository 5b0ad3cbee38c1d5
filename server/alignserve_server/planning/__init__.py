"""Capacity planning: estimates how many replicas sustain a load by simulating the measured server."""
