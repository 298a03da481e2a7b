"""Benchmarks against the kernel's own price. Run as root: ``python -m tests.benchmarks --help``."""
