"""From bytes to what the model takes: images to pixels, texts to token ids."""
