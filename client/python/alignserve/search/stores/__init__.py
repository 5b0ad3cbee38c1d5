"""Engines of stores."""
