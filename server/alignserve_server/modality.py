"""The modalities of inputs, as named in settings, metrics and logs."""

MODALITIES = ("image", "text")
