"""Batching across callers: admission, queues, scheduler and lanes. Independent of protobuf and torch."""
