"""Which seccomp filter a spec gets. A profile is compiled once per content and set of capabilities."""

from __future__ import annotations

import functools
import os

from tinyvisor.errors import HostError, SpecError
from tinyvisor.profile import default_profile_text, parse_profile, read_profile_text
from tinyvisor.runtime.host import has_seccomp, kernel_version
from tinyvisor.runtime.seccomp import MACHINES, NEEDED, Filter, compile_profile
from tinyvisor.spec import Spec

_CURE = 'see `tinyvisor doctor`, or take "seccomp=unconfined" in "security_opt"'


def filter_for(spec: Spec) -> Filter | None:
    """The filter that ``spec.seccomp`` names, for this machine; None where it is ``"unconfined"``.

    Raises:
        SpecError: the profile can't be read, is wrong, or refuses what is needed to start the workload.
        HostError: there are no filters for this machine, or its kernel takes none.
    """
    if spec.seccomp == "unconfined":
        return None
    try:
        text = default_profile_text() if isinstance(spec.seccomp, str) else read_profile_text(spec.seccomp)
        filter = _compiled(text, spec.capabilities)
    except OSError as error:
        raise SpecError("security_opt", f"{spec.seccomp}: {os.strerror(error.errno or 0)}") from None
    except ValueError as error:
        raise SpecError("security_opt", f"{spec.seccomp}: {error}") from None
    needed = NEEDED[:1] if spec.no_new_privs else NEEDED
    refused = [name for name in filter.refused if name in needed]
    if refused:
        why = "the workload is started" if spec.no_new_privs else "without no-new-privileges, rights are dropped"
        raise SpecError("security_opt", f"{spec.seccomp}: the profile must allow {', '.join(refused)}: {why} under it")
    return filter


@functools.lru_cache(maxsize=64)
def _compiled(text: str, capabilities: frozenset[str]) -> Filter:
    system = os.uname()
    if system.machine not in MACHINES:
        raise HostError(f"there are no seccomp filters for {system.machine}", _CURE)
    if not has_seccomp():
        raise HostError("this kernel takes no seccomp filters", _CURE)
    return compile_profile(
        parse_profile(text),
        MACHINES[system.machine],
        capabilities=capabilities,
        kernel=kernel_version(system.release),
    )
