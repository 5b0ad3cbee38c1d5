"""The life of one server process: load, serve, watch, drain, stop."""
