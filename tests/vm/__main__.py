"""``python -m tests.vm [PYTEST-ARGUMENT...]``: boots Debian's kernel with nothing but cgroup v2 and runs kernel tests there.

virtme-ng boots it on this machine's own file system, read-only, by software emulation: /dev/kvm is not needed, and
everything takes some twenty times as long. So without arguments only the tests in the file ``selection`` are run, on one
event loop: all that is about cgroups, and of the others what the kernel has most part in. What the guest needs beside
that is in guest.sh.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUDGET = float(os.environ.get("TINYVISOR_VM_BUDGET", "270"))
"""Seconds from the start of the emulator to the end of the tests."""

OUT_OF_TIME = 75
"""Exit status (EX_TEMPFAIL): everything that ran within the budget passed, and not all of it ran."""

QEMU = "qemu-system-x86_64"
SHARE = (
    "-fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=host,mount_tag=host"
)
# What makes a kernel slow under emulation and is of no interest here: the walls against speculation (each system call
# flushes the TLB), a fifth level of page tables, protections that end a translated block, wide registers to save, clocks
# behind a slow port, grace periods. At log level 3 the console shows a panic and not each OOM kill.
PARAMETERS = (
    "mitigations=off", "no5lvl", "nosmap", "nosmep", "nopku", "noxsave", "tsc=reliable", "rcupdate.rcu_expedited=1",
    "nowatchdog", "audit=0", "loglevel=3",
)  # fmt: skip
SELECTION = Path(__file__).with_name("selection").relative_to(ROOT)


def newest_kernel(boot: Path = Path("/boot")) -> Path | None:
    """The newest generic kernel of Debian's; the cloud and real-time ones lack 9p."""
    return max(boot.glob("vmlinuz-*[0-9]-amd64"), key=lambda path: list(map(int, re.findall(r"\d+", path.name))), default=None)


# Not only for vng itself: it calls virtme-run, which pip has put beside it.
PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"


def vng() -> str | None:
    return shutil.which("vng", path=PATH)


def command(kernel: Path, arguments: list[str]) -> list[str]:
    inside = [str(ROOT / "tests/vm/guest.sh"), str(ROOT), sys.executable, *arguments]
    return [
        str(vng()), "--run", str(kernel), "--disable-kvm", "--force-9p",
        "--user", "root", "--memory", "2G", "--cpus", "2", f"--qemu-opts={SHARE}", f"--append={' '.join(PARAMETERS)}",
        "--exec", shlex.join(inside),
    ]  # fmt: skip


def lacking() -> str | None:
    """What is missing, with the cure."""
    if os.uname().machine != "x86_64":
        return "an x86-64 machine"
    if newest_kernel() is None:
        return "a generic kernel in /boot: apt-get install linux-image-amd64"
    if shutil.which(QEMU) is None:
        return f"{QEMU}: apt-get install qemu-system-x86"
    if vng() is None:
        return "virtme-ng: pip install -e '.[test,vm]'"
    return None


def output(process: subprocess.Popen[bytes], terminal: int, deadline: float) -> Iterator[bytes]:
    """What it writes, until it ends or the deadline has come."""
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([terminal], [], [], min(left, 1))
        if ready:
            try:
                yield os.read(terminal, 65536)
            except OSError:  # EIO: nobody has the terminal any more
                return
        elif process.poll() is not None:
            return


def take_terminal() -> None:
    """Should we be killed, the terminal hangs up and the emulator ends."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def run(arguments: list[str]) -> int:
    """The guest's exit status; `OUT_OF_TIME` where the budget was too small for a slow machine, 1 where it can't tell."""
    kernel = newest_kernel()
    assert kernel is not None
    ours, theirs = pty.openpty()  # virtme-ng wants a terminal
    start, text, ended = time.monotonic(), b"", None
    with tempfile.TemporaryDirectory(prefix="tinyvisor-vm-") as scratch, subprocess.Popen(
        command(kernel, arguments), stdin=theirs, stdout=theirs, stderr=theirs,
        env=os.environ | {"TMPDIR": scratch, "PATH": PATH}, start_new_session=True, preexec_fn=take_terminal,
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            for data in output(process, ours, start + BUDGET):
                text += data
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
                if ended := re.search(rb"^guest ended with (\d+)\r?\n", text, re.MULTILINE):
                    break
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    os.close(ours)
    seconds = time.monotonic() - start
    if ended is None and seconds >= BUDGET:
        passed, failed = text.count(b" PASSED"), len(re.findall(rb" (?:FAILED|ERROR)", text))
        print(f"the guest did not end within {BUDGET:.0f} s: {passed} passed, {failed} failed by then", file=sys.stderr)
        return 1 if failed or not passed else OUT_OF_TIME
    if ended is None:
        print("the guest died", file=sys.stderr)
        return 1
    print(f"{kernel.name}: {seconds:.0f} s, status {int(ended[1])}")
    return int(ended[1])


def main() -> int:
    if missing := lacking():
        must_work = os.environ.get("TINYVISOR_MUST_WORK") == "1"
        print(f"{'TINYVISOR_MUST_WORK=1, but: needs' if must_work else 'skipped: needs'} {missing}", file=sys.stderr)
        return 1 if must_work else 0
    # -vv: what hangs is the last name on the console.
    options = ["-vv", "-p", "no:cacheprovider", "-o", "timeout=300", "--durations=15"]
    return run(["-m", "pytest", *options, *(sys.argv[1:] or [f"@{SELECTION}"])])


if __name__ == "__main__":
    sys.exit(main())
