"""``tinyvisor`` and ``python -m tinyvisor``: runs a command, turns errors into lines and exit codes.

The one place where exception groups are taken apart. Expected errors are lines on stderr; anything else is a bug and
shows its traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinyvisor.cli.failures import ExitCodes

INTERRUPTED = 128 + int(signal.SIGINT)
READER_GONE = 1
"""As click has it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    _open_standard_fds()
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except OSError as exc:
        if exc.errno != errno.EPIPE:
            if not _is_of_stdout(exc):
                raise
            print(f"tinyvisor: standard output: {exc.strerror}", file=sys.stderr)
        code = _let_go_of_stdout()
    sys.exit(code)


def _open_standard_fds() -> None:
    """Those that are closed (``>&-``): else a socket of ours would be there, and would get what is printed."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: `fd`
            file = open(fd, "r" if fd == 0 else "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, file)


def _is_of_stdout(error: OSError) -> bool:
    """Whether stdout can't be written to (a full disk): then nor can one byte more. What is no fault of its is a bug, beside
    whose traceback that does no harm."""
    try:
        os.write(1, b"\n")
    except OSError as exc:
        return exc.errno == error.errno
    return False


def _run(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["ps"] and "_TINYVISOR_COMPLETE" not in os.environ:
        from tinyvisor.cli import quick

        code = quick.ps(arguments[1:])
        if code is not None:
            return code
    from tinyvisor.cli.failures import ExitCodes

    return _invoke(arguments, ExitCodes())


def _invoke(arguments: Sequence[str], codes: ExitCodes) -> int:
    import click

    from tinyvisor.cli.failures import expected, lines
    from tinyvisor.cli.group import cli

    try:
        result = cli.main(list(arguments), prog_name="tinyvisor", standalone_mode=False, obj=codes)
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as exc:
        exc.show()
        return codes.ours
    except Exception as exc:
        errors = expected(exc)
        if errors is None:
            raise
        print("\n".join(lines(errors, codes)), file=sys.stderr)
        return codes.of(errors)
    return result if isinstance(result, int) else 0


def _let_go_of_stdout() -> int:
    """Whoever read our output has gone; the interpreter's last flush must not complain about it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    return READER_GONE


if __name__ == "__main__":
    main()
