"""Boots another kernel, with nothing but cgroup v2, and runs kernel tests there: ``python -m tests.vm``."""
