"""Servers to compare with: what people write or take today, each with the same checkpoint."""
