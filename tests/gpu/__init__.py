"""The check for a machine with a GPU: `python -m tests.gpu`."""
