"""The model: preprocessing, encoders and zero-shot classification. Knows no protobuf and no queue."""
