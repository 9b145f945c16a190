"""Benchmarks: ratios in one run, never bare numbers. ``python -m benchmarks`` (or ``make bench``) runs them."""
