"""Datasets in, datasets out: reads collections of images and texts, and embeds them without losing a row.

Needs the extra `datasets`: `pip install 'alignserve[datasets]'`.
"""
