"""Checks READMEs, protos, tables and commands against the code."""
