"""Proof that every client library does the same: one file of cases, one protocol, one driver a language."""
