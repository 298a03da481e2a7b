"""What a caller of the API has asked for: a spec out of a command and its changes, and the checks of other values. No kernel.

Specs are cached: most runs of a program differ in nothing but their command, and many in their input only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tinyvisor.errors import SpecError
from tinyvisor.runtime.plan import made_fds
from tinyvisor.spec import Limits, Spec, check_fields


def spec_of(command: Spec | Sequence[str], limits: Limits | None, changes: dict[str, Any]) -> Spec:
    """`changes` go over `limits`, and both over what the spec says that was given for a command.

    Raises:
        SpecError: a value that is none.
    """
    if limits is not None:
        if not isinstance(limits, Limits):
            raise SpecError("limits", f"expected Limits, got {limits!r:.100}")
        changes = {**limits.spec_fields(), **changes}
    if isinstance(command, Spec):
        return command.with_(**changes) if changes else command
    if isinstance(command, str | bytes):
        raise SpecError("command", "expected a list of words; for a shell's text use ['sh', '-c', text]")
    check_fields(changes.keys())
    if "environment" in changes:  # can't be hashed
        rest = {name: value for name, value in changes.items() if name != "environment"}
        return spec_of(command, None, rest).with_(environment=changes["environment"])
    try:
        if isinstance(command, list | tuple):
            return _with_command(tuple(changes.items()), tuple(command))
        template = _template(tuple(changes.items()))
    except TypeError:  # something else that can't, such as ulimits
        return Spec(command=command, **changes)  # type: ignore[arg-type] # made a tuple there
    return template.with_(command=command)


@functools.lru_cache(maxsize=256)
def _template(changes: tuple[tuple[str, Any], ...]) -> Spec:
    """A spec to be copied with another command: most runs of a program differ in nothing else."""
    return Spec(command=("true",), **dict(changes))


@functools.lru_cache(maxsize=16)  # commands may be large
def _with_command(changes: tuple[tuple[str, Any], ...], command: tuple[str, ...]) -> Spec:
    """Many differ in their input only."""
    return _template(changes).with_(command=command)


def check_count(name: str, value: object, least: int) -> None:
    """Raises `SpecError` unless it is a whole number, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SpecError(name, f"expected a whole number, {least} or more, got {value!r}")


def check_untraced(spec: Spec) -> None:
    """Raises `SpecError` where a rule needs a tracer, and there is none."""
    if any(rule.reads for rule in spec.on_syscall):
        raise SpecError("on_syscall", "paths and addresses are read by a tracer: use `tinyvisor trace`, or Runtime.trace")


def check_made_ahead(spec: Spec) -> None:
    """Raises `SpecError` where it has what can't wait for its command."""
    if made := made_fds(spec):
        raise SpecError(made[0], "can't be had by a container that is made ahead, or traced from its start")
