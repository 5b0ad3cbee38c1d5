"""Batching across callers: admission, queues, scheduler and lanes. Knows no protobuf and no torch."""
