"""The HTTP port: Connect, gRPC-Web, JSON, and the dialects of other embedding servers."""
