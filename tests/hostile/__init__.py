"""Input made to break what reads it, sent to a live server."""
