"""Input made to break parsers and decoders, sent to a live server."""
