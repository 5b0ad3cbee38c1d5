"""The API without a wire format: what every door calls."""
