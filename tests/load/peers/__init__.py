"""Servers for the benchmarks: peers to compare with, and variants of alignserve."""
