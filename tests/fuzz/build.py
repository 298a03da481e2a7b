"""Compiles the launcher's own sources with a kernel that does nothing (kernel.c) into one program per target.

With clang it is a libFuzzer program; with gcc, one that runs a target on files. A source that calls what kernel.c does not stand
in for is not linked: it would reach the machine.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hatch_build import SANITIZED, SOURCES

HERE = Path(__file__).parent
TARGETS = ("request", "steps", "launcher", "init", "keeper", "arguments")

CALLS = tuple(
    "_exit accept4 calloc chdir chroot clock_gettime close dup2 dup3 execve execvp fchdir fchown fchownat fcntl fork fprintf fread "
    "free fstat fstatfs ftruncate geteuid getpgrp getpid getppid getrlimit getrusage getsockopt ioctl kill madvise malloc "
    "memfd_create mkdir mkdirat mknod mknodat mmap mount nanosleep open openat perror pipe2 poll ppoll prctl pread printf ptrace "
    "read realloc recv recvmsg sendmsg setfsgid setfsuid sethostname setns setpgid setrlimit setsid setsockopt sigaction socket "
    "socketpair symlinkat syscall tcgetpgrp tcsetpgrp umask umount2 unlinkat unshare wait4 waitid waitpid write".split()
)
"""What the launcher asks the kernel for, by the functions of libc's that do it."""

HARMLESS = frozenset(
    "__cmsg_nxthdr __ctype_b_loc __errno_location _setjmp abort atoi fflush fwrite getopt gnu_dev_makedev memcmp memcpy memmove "
    "memset opterr optarg optind snprintf stderr stdin stdout strchr strcmp strcspn strerror strlen strncmp strspn strtok_r strtol "
    "strtoll __isoc23_strtol __isoc23_strtoll __stack_chk_fail".split()
)
"""What works on memory alone, or is told to print by who is known to be only this program."""

_OF_THE_COMPILER = re.compile(r"_*(start|stop)?_*(asan|ubsan|sanitizer|sancov)_|_GLOBAL_OFFSET_TABLE_")
_INCLUDED = re.compile(r"#include <(\w+\.c)>")


class UnsafeError(Exception):
    """A source of the launcher's calls something that would reach the machine."""


def find_clang() -> str | None:
    """The newest clang that brings libFuzzer."""
    names = ["clang", *(f"clang-{version}" for version in range(30, 10, -1))]
    return next((name for name in names if (path := shutil.which(name)) and _has_fuzzer(path)), None)


def _has_fuzzer(clang: str) -> bool:
    run = subprocess.run([clang, "-print-runtime-dir"], capture_output=True, text=True, check=False)
    places = [Path(run.stdout.strip())]
    named = subprocess.run([clang, "-print-file-name=lib"], capture_output=True, text=True, check=False).stdout.strip()
    resources = subprocess.run([clang, "-print-resource-dir"], capture_output=True, text=True, check=False).stdout.strip()
    places += [Path(named), Path(resources, "lib", "linux")]
    return any(list(place.glob("libclang_rt.fuzzer*")) for place in places if place.is_dir())


def _options(compiler: str, *, fuzzer: bool) -> list[str]:
    options = [compiler, "-std=gnu17", "-Wall", "-Wextra", "-Werror", *SANITIZED, f"-I{SOURCES}", f"-I{HERE}"]
    return [*options, *(f"-D{name}=fake_{name}" for name in CALLS)] + (["-fsanitize=fuzzer-no-link"] if fuzzer else [])


def _compile(command: Sequence[str], source: Path, output: Path) -> Path:
    subprocess.run([*command, "-c", str(source), "-o", str(output)], check=True)
    return output


def unsafe_calls(object_file: Path, own: frozenset[str]) -> set[str]:
    """What it calls beside `own` functions and kernel.c's."""
    lines = subprocess.run(["nm", "-u", object_file], capture_output=True, text=True, check=True).stdout.splitlines()
    called = {line.split()[-1] for line in lines}
    fake = {f"fake_{name}" for name in CALLS}
    return {name for name in called - fake - HARMLESS - own if not _OF_THE_COMPILER.match(name)}


def _defined(object_files: Sequence[Path]) -> frozenset[str]:
    lines = subprocess.run(["nm", "--defined-only", *object_files], capture_output=True, text=True, check=True).stdout.splitlines()
    return frozenset(fields[2] for line in lines if len(fields := line.split()) == 3)


def build(directory: Path, targets: Sequence[str] = TARGETS, *, clang: str | None) -> dict[str, Path]:
    """One program per target, in `directory`.

    Args:
        clang: None: gcc, and no fuzzer.

    Raises:
        UnsafeError: nothing was linked.
        subprocess.CalledProcessError: the compiler's words are on stderr.
    """
    compiler, fuzzer = clang or "gcc", clang is not None
    watched, unwatched = _options(compiler, fuzzer=fuzzer), _options(compiler, fuzzer=False)
    sources = {path.name: [*watched, "-Dmain=launcher_main"] for path in SOURCES.glob("*.c")}
    with ThreadPoolExecutor(2) as pool:
        # The real main.c is not the program's own: launcher_main.
        made = {name: pool.submit(_compile, command, SOURCES / name, directory / f"{name}.o") for name, command in sources.items()}
        entries = {
            name: pool.submit(_compile, watched, HERE / f"{name}.c", directory / f"target-{name}.o") for name in targets
        }
        kernel = [pool.submit(_compile, unwatched, HERE / "kernel.c", directory / "kernel.o")]
        if fuzzer:
            kernel.append(pool.submit(_compile, unwatched, HERE / "mutate.c", directory / "mutate.o"))
        else:
            plain = [compiler, *SANITIZED, f"-I{HERE}"]
            kernel.append(pool.submit(_compile, plain, HERE / "replay.c", directory / "replay.o"))
        objects = {name: future.result() for name, future in made.items()}
        roots = {name: future.result() for name, future in entries.items()}
        around = [future.result() for future in kernel]
        own = _defined([*objects.values(), *around])
        for file in (*objects.values(), *roots.values()):
            if unsafe := unsafe_calls(file, own):
                raise UnsafeError(f"{file.name} calls {', '.join(sorted(unsafe))}: CALLS and kernel.c know nothing of it")
        link = [compiler, *SANITIZED, *(["-fsanitize=fuzzer"] if fuzzer else [])]
        return dict(pool.map(lambda name: (name, _link(link, name, roots[name], objects, around, directory)), targets))


def _link(
    command: Sequence[str], name: str, root: Path, objects: dict[str, Path], around: Sequence[Path], directory: Path
) -> Path:
    included = set(_INCLUDED.findall((HERE / f"{name}.c").read_text()))
    files = [str(file) for source, file in objects.items() if source not in included]
    program = directory / f"fuzz-{name}"
    subprocess.run([*command, str(root), *files, *map(str, around), "-o", str(program)], check=True)
    return program
