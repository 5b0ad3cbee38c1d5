"""The alignserve server: ALIGN over gRPC, batched across callers."""
