"""Evaluates the model of a server on labelled data: classification, retrieval, neighbours and calibration.

The measures need numpy only; reading data needs the extra `datasets`: `pip install 'alignserve[datasets]'`.
"""
