"""The parts of the command `alignserve`."""
