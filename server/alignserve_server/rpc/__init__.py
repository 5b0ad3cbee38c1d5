"""gRPC: messages to values and back, streams, statuses, health. The only place with protobuf."""
