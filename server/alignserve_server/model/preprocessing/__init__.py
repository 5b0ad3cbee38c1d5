"""Converts bytes to the model's input: images to pixels, texts to token ids."""
