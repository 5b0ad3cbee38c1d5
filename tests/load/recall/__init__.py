"""Recall of search engines by direction: text to image and image to image, against exact search."""
