"""``python -m tinyvisor.tracing``: the tracer, as `tinyvisor.runtime.tracer` starts it."""

from tinyvisor.tracing.worker import main

main()
