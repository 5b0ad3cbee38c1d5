"""The two kinds of inputs, as settings, metrics and logs name them."""

MODALITIES = ("image", "text")
