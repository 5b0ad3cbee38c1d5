"""The Open Inference Protocol (KServe v2) on the gRPC port."""
