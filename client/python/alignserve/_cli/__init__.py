"""The command `alignserve`: what `alignserve.cli` is made of."""
