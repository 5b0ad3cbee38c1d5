"""Observability: metrics, traces, logs."""
