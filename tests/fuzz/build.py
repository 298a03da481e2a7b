"""Compiles the launcher's own sources with a kernel that does nothing (kernel.c) into one program per target.

With clang it is a libFuzzer program; with gcc, one that runs a target on files. A source that calls what kernel.c does not stand
in for is not linked: it would reach the machine.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hatch_build import SANITIZED
from hatch_build import SOURCES as REAL

HERE = Path(__file__).parent
GCC = "gcc"
TARGETS = ("request", "steps", "launcher", "init", "keeper", "arguments")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CALLS = _words("""
    _exit accept4 calloc chdir chroot clock_gettime close dup2 dup3 execve execvp fchdir fchown fchownat fcntl fork
    fprintf fread free fstat fstatat fstatfs ftruncate geteuid getpgrp getpid getppid getrlimit getrusage getsockopt
    ioctl kill madvise malloc memfd_create mkdir mkdirat mknod mknodat mmap mount nanosleep open openat perror pipe2
    poll ppoll prctl pread printf ptrace read realloc recv recvmsg sendmsg setfsgid setfsuid sethostname setns setpgid
    setrlimit setsid setsockopt sigaction socket socketpair symlinkat syscall tcgetpgrp tcsetpgrp umask umount2 unlinkat
    unshare wait4 waitid waitpid write
""")
"""What the launcher asks the kernel for, by the functions of libc's that do it."""

HARMLESS = _words("""
    __cmsg_nxthdr __ctype_b_loc __errno_location __isoc23_strtol __isoc23_strtoll __stack_chk_fail _setjmp abort atoi fflush
    fwrite getopt gnu_dev_makedev memchr memcmp memcpy memmove memset opterr optarg optind snprintf stderr stdin stdout strchr
    strcmp strcspn strerror strlen strncmp strspn strtok_r strtol strtoll
""")
"""What works on memory alone, or prints."""

_OF_THE_COMPILER = re.compile(r"_*(start|stop)?_*(asan|ubsan|sanitizer|sancov)_|_GLOBAL_OFFSET_TABLE_")
_INCLUDED = re.compile(r"#include <(\w+\.c)>")


class UnsafeError(Exception):
    """A source of the launcher's calls something that would reach the machine."""


def find_clang() -> str | None:
    """The newest clang that brings libFuzzer."""
    names = ["clang", *(f"clang-{version}" for version in range(30, 10, -1))]
    return next((name for name in names if (path := shutil.which(name)) and _has_fuzzer(path)), None)


def _has_fuzzer(clang: str) -> bool:
    run = subprocess.run([clang, "-print-resource-dir"], capture_output=True, text=True, check=False)
    return run.returncode == 0 and any(Path(run.stdout.strip(), "lib").rglob("libclang_rt.fuzzer*"))


def _options(compiler: str, sources: Path, *, fuzzer: bool) -> list[str]:
    options = [compiler, "-std=gnu17", "-Wall", "-Wextra", "-Werror", *SANITIZED, f"-I{sources}", f"-I{HERE}"]
    return [*options, *(f"-D{name}=fake_{name}" for name in sorted(CALLS))] + (["-fsanitize=fuzzer-no-link"] if fuzzer else [])


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
    lines = subprocess.run(
        ["nm", "--defined-only", *object_files], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return frozenset(fields[2] for line in lines if len(fields := line.split()) == 3)


def _same(sources: Path, names: Iterable[str]) -> bool:
    return all((sources / name).read_bytes() == (REAL / name).read_bytes() for name in names)


def _objects(directory: Path, compiler: str, sources: Path, known: Path | None, pool: ThreadPoolExecutor) -> dict[str, Path]:
    """The launcher's own. `known`: a directory with those of the real sources, for what is the same here."""
    command = [*_options(compiler, sources, fuzzer=compiler != GCC), "-Dmain=launcher_main"]

    def make(name: str) -> Path:
        if known and _same(sources, [name]):
            return known / f"{name}.o"
        return _compile(command, sources / name, directory / f"{name}.o")

    names = sorted(path.name for path in sources.glob("*.c"))
    return dict(zip(names, pool.map(make, names), strict=True))


def _included(target: str) -> set[str]:
    """The launcher's sources that a target has in itself."""
    return set(_INCLUDED.findall((HERE / f"{target}.c").read_text()))


def _root(directory: Path, compiler: str, sources: Path, known: Path | None, target: str) -> Path:
    if known and _same(sources, _included(target)):
        return known / f"target-{target}.o"
    return _compile(_options(compiler, sources, fuzzer=compiler != GCC), HERE / f"{target}.c", directory / f"target-{target}.o")


def _around(directory: Path, compiler: str, known: Path | None, pool: ThreadPoolExecutor) -> list[Path]:
    """The kernel, and what there is beside it."""
    with_kernel = _options(compiler, REAL, fuzzer=False)
    commands = {"kernel": with_kernel, "mutate": with_kernel}
    if compiler == GCC:
        commands = {"kernel": with_kernel, "replay": [compiler, *SANITIZED, f"-I{HERE}"]}
    if known:
        return [known / f"{name}.o" for name in commands]
    made = [pool.submit(_compile, command, HERE / f"{name}.c", directory / f"{name}.o") for name, command in commands.items()]
    return [future.result() for future in made]


def build(
    directory: Path, targets: Sequence[str] = TARGETS, *, clang: str | None, sources: Path = REAL, known: Path | None = None
) -> dict[str, Path]:
    """One program per target, in `directory`.

    Args:
        clang: None: gcc, and no fuzzer.
        sources: the launcher's, or others in their place.
        known: a directory where `build` was before with the same compiler and the real sources.

    Raises:
        UnsafeError: nothing was linked.
        subprocess.CalledProcessError: the compiler's words are on stderr.
    """
    compiler = clang or GCC
    with ThreadPoolExecutor(2) as pool:
        entries = [pool.submit(_root, directory, compiler, sources, known, name) for name in targets]
        objects = _objects(directory, compiler, sources, known, pool)
        around = _around(directory, compiler, known, pool)
        roots = {name: future.result() for name, future in zip(targets, entries, strict=True)}
        own = _defined([*objects.values(), *around])
        for file in (*objects.values(), *roots.values()):
            if unsafe := unsafe_calls(file, own):
                raise UnsafeError(f"{file.name} calls {', '.join(sorted(unsafe))}: CALLS and kernel.c know nothing of it")
        link = [compiler, *SANITIZED, *(["-fsanitize=fuzzer"] if clang else [])]
        programs = pool.map(lambda name: _link(link, name, roots[name], objects, around, directory), targets)
        return dict(zip(targets, programs, strict=True))


def _link(
    command: Sequence[str], name: str, root: Path, objects: Mapping[str, Path], around: Sequence[Path], directory: Path
) -> Path:
    files = [str(file) for source, file in objects.items() if source not in _included(name)]
    program = directory / f"fuzz-{name}"
    subprocess.run([*command, str(root), *files, *map(str, around), "-o", str(program)], check=True)
    return program
