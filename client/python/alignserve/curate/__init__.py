"""Curation of image and text pairs: pairs in, the same with measures and a verdict out.

Needs the extra `curate`: `pip install 'alignserve[curate]'`.
"""
