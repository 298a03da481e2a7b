"""Each attack of `tinyvisor audit` in each profile: held but where it is known not to be; and the command."""

from __future__ import annotations

import pytest

from tests.kernel.helpers import status
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
