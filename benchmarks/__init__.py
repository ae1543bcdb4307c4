"""Ours and its peers on the machine at hand. docs/benchmarks.md has the commands and figures."""
