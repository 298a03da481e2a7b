"""Syscall tracing in a process of its own: ``python -m tinyvisor.tracing``, started by `tinyvisor.runtime.tracer`.

`flags` and `signatures` are data, `decode` is pure; `worker` alone imports python-ptrace, which is GPL-2.0-only, blocks, and is
bound to a thread: nothing but that process imports it.
"""
