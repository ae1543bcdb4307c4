"""Ours, its peers and its variants on the machine at hand; docs/benchmarks.md has the figures."""
