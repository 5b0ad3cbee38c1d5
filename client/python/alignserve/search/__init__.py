"""Search by image and text: stores of embeddings, and queries over them.

Needs the extra `search`: `pip install 'alignserve[search]'`.
"""
