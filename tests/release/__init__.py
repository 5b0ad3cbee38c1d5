"""What a release consists of: two distributions, and the bills of materials of the images."""
