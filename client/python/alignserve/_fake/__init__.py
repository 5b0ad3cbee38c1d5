"""The fake server behind `alignserve.testing`: real gRPC, scripted failures, no model."""
