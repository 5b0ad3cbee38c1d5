"""Capacity planning: how many replicas hold a load, by simulation of the measured server."""
