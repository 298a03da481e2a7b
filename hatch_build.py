"""The build hook: compiles the C launcher into the wheel, and into the source tree for editable installs; makes the manual pages
and what completes commands in shells, which pip puts into PREFIX/share.

Which compiler and which kind of static executable is decided by looking (`find_toolchain`), never by trying: a failed
compile is reported and ends the build. A wheel without the launcher is never made.
Source: gcc(1), ld(1), hatchling BuildHookInterface; musl-gcc's specs know no -static-pie.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "tinyvisor" / "runtime" / "launcher"
LAUNCHER = ROOT / "tinyvisor" / "_bin" / "tinyvisor-launcher"
ZIGLANG = "ziglang>=0.13"
CLICK = "click>=8.2,<9"
CURE = "apt install gcc musl-tools, or let pip fetch ziglang"

WARNINGS = (
    "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wvla", "-Wformat=2", "-Wstrict-prototypes", "-Wmissing-prototypes",
    "-Wold-style-definition", "-Wundef", "-Wpointer-arith", "-Wwrite-strings", "-Wcast-qual", "-Wimplicit-fallthrough",
)  # fmt: skip
# -U first: distributions that predefine _FORTIFY_SOURCE would warn. musl has no fortified functions; there it does nothing.
HARDENED = ("-Os", "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2")
HARDENED_LINK = ("-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack", "-s")
# The macro is gcc's; clang says it by __has_feature only, and would compile what the sanitizers can't follow.
SANITIZED = (
    "-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
    "-D__SANITIZE_ADDRESS__=1",
)  # fmt: skip

ZIG_ARCHITECTURES = {"i386": "x86", "i686": "x86", "ppc64le": "powerpc64le", "armv7l": "arm", "armv6l": "arm"}


class CompileError(Exception):
    """The launcher could not be compiled; the message has the compiler's own words and the cure."""


class Toolchain(NamedTuple):  # a dataclass would need the module in sys.modules, where hatchling doesn't put it
    """A compiler and how it makes a static executable.

    Attributes:
        command: the compiler's command line so far.
        static: its options for that.
    """

    command: tuple[str, ...]
    static: tuple[str, ...]


def _has_file(command: list[str], name: str) -> bool:
    """Whether the compiler would find this library file (an unknown one is printed back as it is)."""
    run = subprocess.run([*command, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    return run.returncode == 0 and Path(run.stdout.strip()).is_absolute()


def _static_options(command: list[str]) -> tuple[str, ...]:
    """static-pie where the libc has its start file (glibc 2.26, musl's own compiler); musl-gcc's specs would ignore it."""
    if Path(command[0]).name.startswith("musl-") or not _has_file(command, "rcrt1.o"):
        return ("-static",)
    return ("-static-pie", "-fPIE")


def find_compiler() -> Toolchain | None:
    """The compiler to use: $CC; musl-gcc; cc, gcc or clang that have a static libc; None where there is none of them."""
    if chosen := shlex.split(os.environ.get("CC", "")):
        return Toolchain(tuple(chosen), _static_options(chosen) if shutil.which(chosen[0]) else ("-static",))
    if musl := shutil.which("musl-gcc"):
        return Toolchain((musl,), ("-static",))
    for name in ("cc", "gcc", "clang"):
        if (found := shutil.which(name)) and _has_file([found], "libc.a"):
            return Toolchain((found,), _static_options([found]))
    return None


def _zig() -> Toolchain:
    """The compiler in the PyPI package ziglang, which brings musl with it."""
    machine = platform.machine()
    libc = "musleabihf" if machine.startswith("armv") else "musl"
    target = f"{ZIG_ARCHITECTURES.get(machine, machine)}-linux-{libc}"
    # Zig traps on undefined behaviour by itself in some modes; the sanitized build is where we look for it.
    # CMSG_NXTHDR of musl compares signed with unsigned, which clang reports and gcc takes as the system's own affair.
    options = ("-static", "-fno-sanitize=undefined", "-Wno-sign-compare")
    return Toolchain((sys.executable, "-m", "ziglang", "cc", "-target", target), options)


def _sanitizing_compiler() -> Toolchain:
    """A dynamic build: the sanitizers' runtimes need glibc."""
    name = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if name is None:
        raise CompileError("no C compiler for the sanitized build; apt install gcc")
    return Toolchain((name,), ())


def compile_launcher(output: Path, *, sanitize: bool = False) -> None:
    """Compiles the launcher to `output` (mode 0755), which is replaced in one step.

    Args:
        output: its directory is made where missing.
        sanitize: a dynamic build with AddressSanitizer and UBSan, for tests.

    Raises:
        CompileError: `output` is as it was before.
    """
    toolchain = _sanitizing_compiler() if sanitize else find_compiler() or _zig()
    flags = SANITIZED if sanitize else (*HARDENED, *toolchain.static, *HARDENED_LINK)
    sources = sorted(map(str, SOURCES.glob("*.c")))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tinyvisor-build-", dir=output.parent) as scratch:
        made = Path(scratch, output.name)
        command = [*toolchain.command, "-std=gnu17", *WARNINGS, *flags, *sources, "-o", str(made)]
        environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch}
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            message = run.stderr + run.stdout if run.returncode else ""
        except OSError as error:
            message = str(error)
        if message or not made.exists():
            raise CompileError(f"the launcher could not be compiled:\n{message}\ncommand: {shlex.join(command)}\ncure: {CURE}")
        made.chmod(0o755)
        made.replace(output)


def shared_data(directory: Path) -> dict[str, str]:
    """Writes the manual pages and what completes commands in shells; which file belongs where below the prefix.

    The commands themselves say what is in them, and need click and the standard library for that, nothing else.
    """
    sys.path.insert(0, str(ROOT))
    try:
        from tinyvisor.cli.man import installed_files
    finally:
        sys.path.remove(str(ROOT))
    found = {}
    for number, (place, text) in enumerate(installed_files().items()):
        file = directory / str(number)
        file.write_text(text, encoding="utf-8")
        found[str(file)] = place
    return found


def wheel_tag() -> str:
    """One wheel per CPU, for every Python: ``py3-none-linux_x86_64``."""
    return f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


class LauncherBuildHook(BuildHookInterface[Any]):
    """Runs for wheels only, editable ones too; a source distribution carries the C files."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What pip has to fetch before the build: what the manual is made with; a compiler, where there is none."""
        return [CLICK] if find_compiler() else [CLICK, ZIGLANG]

    def clean(self, versions: list[str]) -> None:
        """`hatchling build --clean`."""
        LAUNCHER.unlink(missing_ok=True)

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles; hatchling then packs what `artifacts` names, although git ignores it."""
        if self.target_name != "wheel":
            return
        if sys.platform != "linux":
            raise CompileError("tinyvisor runs on Linux only")
        compile_launcher(LAUNCHER)
        build_data["pure_python"] = False
        build_data["tag"] = wheel_tag()
        build_data["artifacts"].append(f"/{LAUNCHER.relative_to(ROOT)}")
        self._share = tempfile.TemporaryDirectory(prefix="tinyvisor-build-")
        build_data["shared_data"] |= shared_data(Path(self._share.name))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """All is packed."""
        if self.target_name == "wheel":
            self._share.cleanup()
