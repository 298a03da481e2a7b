"""Each attack of `tinyvisor audit` in each profile: held but where it is known not to be; and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kernel.command import tinyvisor
from tests.kernel.helpers import busybox_root, status
from tests.kernel.test_attacks import the_host_is_unharmed  # noqa: F401 - a fixture that is always used
from tinyvisor.attacks import ATTACKS, NAKED, PROFILES
from tinyvisor.audit import audit
from tinyvisor.runtime import Runtime
from tinyvisor.spec import CAPABILITIES, Spec

pytestmark = [pytest.mark.kernel, pytest.mark.anyio]

OF_SOME_KERNELS = ("kernel modules", "ports and memory of the machine", "other system call interfaces", "keyrings")
"""A kernel may be built without what they use."""
LIMITS = Spec(command=("true",), pids_limit=64, mem_limit=256 << 20)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "trio"


@pytest.mark.parametrize("profile", [name for name in PROFILES if name != NAKED])
async def test_attacks_are_held(shared: Runtime, profile: str) -> None:
    """Where one may succeed, whether it does is the host's matter: its kernel, its sysctls, its devices."""
    found = {each.attack: each async for each in audit(shared, LIMITS.with_(**PROFILES[profile]))}
    assert len(found) == len(ATTACKS)
    wrong = [found[attack.name] for attack in ATTACKS if profile not in attack.open_in and found[attack.name].result != "held"]
    assert wrong == [], "\n".join(map(str, wrong))


async def test_they_are_attacks(shared: Runtime) -> None:
    """With no walls but namespaces they succeed: that one is held elsewhere means something."""
    bounding = int(status("self")["CapBnd"], 16)  # of a host that is itself a container
    capabilities = frozenset(name for number, name in enumerate(CAPABILITIES) if bounding >> number & 1)
    spec = LIMITS.with_(**{**PROFILES[NAKED], "capabilities": capabilities})
    found = {each.attack: each async for each in audit(shared, spec)}
    wrong = [
        found[attack.name]
        for attack in ATTACKS
        if (found[attack.name].result == "open") != (NAKED in attack.open_in) and attack.name not in OF_SOME_KERNELS
    ]
    assert wrong == [], "\n".join(map(str, wrong))


# ---- the command ----


def test_the_default_container() -> None:
    ended = tinyvisor("audit", "--json")
    (container,) = json.loads(ended.stdout)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [found["attack"] for found in container["attacks"]] == [attack.name for attack in ATTACKS]
    assert {found["result"] for found in container["attacks"]} == {"held"}
    assert container["unlimited"][:2] == ["processes (pids_limit)", "memory (mem_limit)"]


def test_a_service_with_a_hole(tmp_path: Path) -> None:
    words = 'command: [echo, "never run"]\npids_limit: 50\nmem_limit: 256m\n'
    (tmp_path / "open.yaml").write_text(words + 'user: "1234"\nsecurity_opt: [seccomp=unconfined]\nvolumes: [./data:/data]\n')
    (tmp_path / "other.yaml").write_text(words)
    (tmp_path / "data").mkdir()
    ended = tinyvisor("audit", tmp_path, "open")
    assert ended.returncode == 1, ended.stderr
    assert "rarely used system calls                 open " in ended.stdout
    assert "    io_uring_setup; " in ended.stdout
    assert "sysctls                                  held " in ended.stdout
    assert "a hole: security_opt: seccomp=unconfined: all system calls" in ended.stdout
    assert "without a limit: CPU time per time (cpus), time (timeout)\n" in ended.stdout
    assert "never run" not in ended.stdout
    assert list((tmp_path / "data").iterdir()) == []


def test_a_root_that_lacks_what_attacks_need(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(f"command: [true]\nrootfs: {busybox_root(tmp_path / 'root')}\nnetwork_mode: service:two\n")
    (tmp_path / "two.yaml").write_text("command: [true]\n")
    ended = tinyvisor("audit", tmp_path, "one")
    assert ended.returncode == 0, ended.stderr
    assert "needs python3, which the root does not have" in ended.stdout
    assert "the host's network                       held " in ended.stdout
    assert "tried with no network, not with the other service's" in ended.stdout
    assert ended.stdout.splitlines()[-1] == "2 held, 0 open, 28 not run"


def test_what_makes_no_sense(tmp_path: Path) -> None:
    cases: tuple[tuple[list[str | Path], str], ...] = (
        (["--read-only", "configs"], "options are for a container that no FILE describes"),
        (["/no/such.yaml"], "can't be read"),
        (["--user", "nobody-here"], 'user: "nobody-here"'),
        (["--rootfs", tmp_path], "container: no attack could be run: "),
    )
    for words, said in cases:
        ended = tinyvisor("audit", *words)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert said in ended.stderr
