"""The parts of a release: two distributions, and the images' bills of materials."""
