"""Faster forwards of the image tower on an NVIDIA GPU, and the choice between them."""
