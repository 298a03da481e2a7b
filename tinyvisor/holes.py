"""What a spec opens that the default container has shut: the opt-outs, in words. Pure.

`plan`, `config` and `audit` show them; SECURITY.md says more about each."""

from __future__ import annotations

from collections.abc import Iterator

from tinyvisor.spec import DEFAULT_MASKED_PATHS, DEFAULT_NAMESPACES, DEFAULT_READONLY_PATHS, Spec


def holes(spec: Spec) -> tuple[str, ...]:
    """Each begins with what a file says to have it: ``"network_mode: host: …"``."""
    return tuple(_holes(spec))


def _holes(spec: Spec) -> Iterator[str]:
    if spec.in_host_network:
        yield "network_mode: host: all that listens on the host can be reached, on its loopback address, too"
    if spec.userns == "host":
        kept = "the capabilities that are kept" if spec.capabilities else "no capability"
        yield f"userns_mode: host: root inside is root outside, with {kept}"
    if spec.userns_mode == "keep-id":
        yield "userns_mode: keep-id: one of its users is who started it"
    missing = DEFAULT_NAMESPACES - spec.namespaces - {"user", "net"}
    if missing:
        yield f"namespaces: it shares the host's: {', '.join(sorted(missing))}"
    if spec.capabilities:
        over = "the host" if spec.userns == "host" else "its own namespaces"
        yield f"cap_add: rights over {over}: {', '.join(sorted(spec.capabilities))}"
    if not spec.no_new_privs:
        yield "security_opt: no-new-privileges:false: set-id programs give what they say"
    yield from _of_the_filter(spec)
    shown = {*DEFAULT_MASKED_PATHS, *DEFAULT_READONLY_PATHS} - {*spec.masked_paths, *spec.readonly_paths}
    if shown:
        yield f"masked_paths, readonly_paths: not kept from it: {', '.join(sorted(shown))}"
    writable = [str(volume.source) for volume in spec.volumes if not volume.read_only]
    if writable:
        yield f"volumes: it can write {', '.join(writable)}: set-id programs of its root's, too"


def _of_the_filter(spec: Spec) -> Iterator[str]:
    if spec.seccomp == "unconfined":
        yield "security_opt: seccomp=unconfined: all system calls of the kernel that take no capability"
    elif spec.seccomp != "default":
        yield f"security_opt: seccomp={spec.seccomp}: the system calls that this allows, and not those of our profile"
    if spec.seccomp_action == "log":
        yield "seccomp.action: log: what the filter refuses is made all the same"
    let = [rule.syscall for rule in spec.on_syscall if rule.action in ("allow", "log")]
    if let:
        yield f"on_syscall: let through before the profile is asked: {', '.join(let)}"
