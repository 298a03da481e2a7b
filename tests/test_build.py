"""The launcher as it was built: static and hardened; and how the build hook chooses a compiler."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import hatch_build
from hatch_build import ROOT, CompileError, compile_launcher, find_compiler

PT_INTERP, PT_GNU_STACK, PT_GNU_RELRO = 3, 0x6474E551, 0x6474E552
EXECUTABLE = 1


def segments(file: Path) -> dict[int, int]:
    """Type → flags of an ELF file's program headers (elf(5))."""
    data = file.read_bytes()
    assert data[:4] == b"\x7fELF"
    assert data[5] == 1, "little-endian only"
    if data[4] == 2:
        (offset,), (size, count) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<HH", data, 54)
        return dict(struct.unpack_from("<II", data, offset + size * index) for index in range(count))
    (offset,), (size, count) = struct.unpack_from("<I", data, 28), struct.unpack_from("<HH", data, 42)
    headers = (struct.unpack_from("<8I", data, offset + size * index) for index in range(count))
    return {header[0]: header[6] for header in headers}


def programs(directory: Path, *names: str) -> str:
    """A PATH with nothing in it but failing programs by these names."""
    for name in names:
        directory.joinpath(name).write_text("#!/bin/sh\nexit 1\n")
        directory.joinpath(name).chmod(0o755)
    return str(directory)


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not find_compiler():
        pytest.skip("no C compiler here; apt install gcc musl-tools")
    output = tmp_path_factory.mktemp("launcher") / "deep" / "tinyvisor-launcher"
    compile_launcher(output)
    return output


def test_an_installed_launcher_is_there() -> None:
    if not hatch_build.LAUNCHER.exists():
        pytest.skip("not installed from this tree: pip install -e .")
    assert hatch_build.LAUNCHER.stat().st_mode & 0o777 == 0o755
    run = subprocess.run([hatch_build.LAUNCHER], capture_output=True, text=True, check=False)
    assert run.returncode == 125
    assert "usage: tinyvisor-launcher" in run.stderr


def test_launcher_is_static_and_hardened(launcher: Path) -> None:
    found = segments(launcher)
    assert PT_INTERP not in found
    assert PT_GNU_RELRO in found
    assert not found[PT_GNU_STACK] & EXECUTABLE


def test_launcher_is_small_and_executable(launcher: Path) -> None:
    status = launcher.stat()
    assert status.st_mode & 0o777 == 0o755
    assert status.st_size < 2 << 20
    assert list(launcher.parent.iterdir()) == [launcher]


def test_launcher_runs(launcher: Path) -> None:
    run = subprocess.run([launcher, "init", "--", "sh", "-c", "exit 7"], check=False, stdin=subprocess.DEVNULL)
    assert run.returncode == 7


def test_launcher_is_replaced_while_it_runs(launcher: Path) -> None:
    with subprocess.Popen([launcher, "init", "--", "sleep", "60"], stdin=subprocess.DEVNULL) as running:
        compile_launcher(launcher)
        running.terminate()
    assert running.returncode == 128 + 15


def test_compile_error_shows_the_compiler_and_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "my-cc"
    compiler.write_text("#!/bin/sh\necho 'main.c:1: no such luck' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    output = tmp_path / "out" / "launcher"
    with pytest.raises(CompileError, match=r"no such luck(?s:.)*cure: apt install gcc musl-tools, or let pip fetch ziglang"):
        compile_launcher(output)
    assert list(output.parent.iterdir()) == []


def test_missing_cc_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(CompileError, match="no-such-compiler"):
        compile_launcher(tmp_path / "launcher")


def test_cc_is_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "musl-gcc -m64")
    assert find_compiler() == (("musl-gcc", "-m64"), ("-static",))


def test_musl_gcc_is_taken_before_cc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", programs(tmp_path, "musl-gcc", "cc"))
    assert find_compiler() == ((str(tmp_path / "musl-gcc"),), ("-static",))


def test_a_compiler_without_static_libc_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", programs(tmp_path, "cc", "gcc"))
    assert find_compiler() is None


def test_without_a_compiler_ziglang_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    hook = object.__new__(hatch_build.LauncherBuildHook)
    assert hook.dependencies() == [hatch_build.CLICK, hatch_build.ZIGLANG]
    monkeypatch.setenv("CC", "anything")
    assert hook.dependencies() == [hatch_build.CLICK]


def test_manual_and_completion_belong_below_the_prefix(tmp_path: Path) -> None:
    """Made with click and the standard library alone, as in the build's own environment."""
    code = (
        "import sys\nfrom pathlib import Path\nimport hatch_build\nprint(*hatch_build.shared_data(Path(sys.argv[1])).values())\n"
        "print(*{'trio', 'anyio', 'h11', 'pydantic', 'ruamel', 'rich', 'backports'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True, cwd=ROOT)
    places, heavy = run.stdout.splitlines()
    assert {"share/man/man1/tinyvisor.1", "share/man/man1/tinyvisor-up.1"} < set(places.split())
    assert "share/bash-completion/completions/tinyvisor" in places.split()
    assert heavy == ""


def test_one_wheel_per_cpu() -> None:
    assert hatch_build.wheel_tag().startswith("py3-none-linux_")


def _path_without(tmp_path: Path, *prefixes: str) -> str:
    """This machine's PATH, as links to all but some programs."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for place in os.environ["PATH"].split(":"):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            link = directory / program.name
            if not program.name.startswith(prefixes) and not link.exists():
                link.symlink_to(program)
    return str(directory)


@pytest.mark.skipif(os.environ.get("TINYVISOR_TEST_INSTALL") != "1", reason="slow, asks PyPI: TINYVISOR_TEST_INSTALL=1")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "without, editable",
    [((), False), ((), True), (("musl-",), False), (("musl-", "cc", "gcc", "clang", "c99", "c89", "x86_64-linux-gnu-"), False)],
    ids=["musl-gcc", "editable", "cc", "ziglang"],
)
def test_pip_install(tmp_path: Path, without: tuple[str, ...], editable: bool) -> None:
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".git", ".venv", "_bin", "__pycache__", "*_cache")
    shutil.copytree(ROOT, tree, ignore=ignored)
    venv.create(tmp_path / "venv", with_pip=True)
    environment = {key: value for key, value in os.environ.items() if key not in ("CC", "PYTHONPATH")}
    environment["PATH"] = _path_without(tmp_path, *without) if without else os.environ["PATH"]
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "--no-deps", *(["-e"] if editable else []), "."]
    subprocess.run(install, cwd=tree, env=environment, check=True)
    code = "import importlib.resources as r; print(r.files('tinyvisor') / '_bin' / 'tinyvisor-launcher')"
    found = Path(subprocess.run([python, "-c", code], cwd="/", capture_output=True, text=True, check=True).stdout.strip())
    assert found.is_relative_to(tree) == editable
    assert found.stat().st_mode & 0o777 == 0o755
    assert PT_INTERP not in segments(found)
    assert (tmp_path / "venv/share/man/man1/tinyvisor-up.1").is_file()
    assert subprocess.run([found, "init", "--", "true"], stdin=subprocess.DEVNULL, check=False).returncode == 0
