"""Benchmarks: each prints one JSON line, with peer and monro interleaved in one run."""
