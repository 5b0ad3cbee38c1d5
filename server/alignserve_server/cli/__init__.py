"""The commands of `alignserve-server`, one module each."""
