"""Imports go one way, pure modules stay pure, `--help` stays fast: DESIGN's rules, checked over the syntax tree.

The rules are data (`LAYERS`, `RULES`); `check` says which file and line breaks which.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LAYERS: tuple[tuple[frozenset[str], ...], ...] = tuple(
    tuple(map(_words, layer))
    for layer in (
        ("errors", "units", "cron", "pattern", "interpreter", "places", "stored", "processes", "release", "clean", "record"),
        ("spec job", "state"),
        ("profile trace", "holes"),
        ("tracing learned accesses",),
        (
            "config yamlfile yamlparser yamlnode yamlwriter jobs jsonlines digests",
            "policy",
            "health",
            "notify",
            "runtime cluster",
            "view",
            "attacks",
        ),
        ("resume",),
        ("supervisor runner turns tap inside probe listener logtarget", "batch journal outputs report", "audit"),
        ("control client logs openapi metrics",),
        ("cli",),
        ("__main__", "__init__"),
    )
)
"""Lowest first. A module imports from its own group and from lower layers; errors ← spec ← policy, runtime ← supervisor…"""

HEAVY = frozenset({"pydantic", "pydantic_core", "ruamel", "rich", "trio"})
LOOPS = frozenset({"trio", "asyncio"})
EFFECTS = _words(
    "anyio asyncio concurrent ctypes fcntl multiprocessing pty random sched secrets select selectors socket socketserver "
    "subprocess tempfile termios threading time trio"
)
HARMLESS_OS = _words(
    "PathLike altsep curdir environ fsdecode fsencode fspath linesep pardir path sep strerror waitstatus_to_exitcode "
    "WCOREDUMP WEXITSTATUS WIFEXITED WIFSIGNALED WTERMSIG"
)
READS = _words("open read_text read_bytes exists is_file is_dir is_symlink iterdir glob rglob stat lstat resolve cwd")
WRITES = _words("write_text write_bytes mkdir rmdir unlink touch symlink_to hardlink_to chmod")
CLOCKS = _words("now utcnow today")


@dataclass(frozen=True, slots=True)
class Rule:
    """What the modules of some files must not do.

    Attributes:
        name: as it is reported.
        files: patterns, relative to the package.
        imports: top-level packages that must not be imported.
        top_only: imports inside functions are all right.
        calls: names that must not be called, plainly or as a method.
        pure_os: of `os` only `HARMLESS_OS` is used.
    """

    name: str
    files: tuple[str, ...]
    imports: frozenset[str]
    top_only: bool = False
    calls: frozenset[str] = frozenset()
    pure_os: bool = False


RULES = (
    Rule(
        "a pure module: no event loop, no clock, no kernel",
        (
            "errors.py",
            "units.py",
            "record.py",
            "cron.py",
            "pattern.py",
            "clean.py",
            "spec.py",
            "state.py",
            "policy.py",
            "health.py",
            "notify.py",
            "stored.py",
            "resume.py",
            "report.py",
            "digests.py",
            "jsonlines.py",
            "attacks.py",
            "runtime/plan.py",
            "runtime/steps.py",
            "runtime/seccomp.py",
            "runtime/landlock.py",
            "runtime/syscall_numbers.py",
            "trace.py",
            "learned.py",
            "accesses.py",
            "cluster/dispatch.py",
            "cluster/frames.py",
            "cluster/room.py",
            "tracing/flags.py",
            "tracing/signatures.py",
            "tracing/decode.py",
        ),
        EFFECTS,
        calls=READS | WRITES | CLOCKS,
        pure_os=True,
    ),
    Rule(
        "config reads files and does nothing else",
        ("config.py", "yamlfile.py", "profile.py", "jobs.py"),
        EFFECTS,
        calls=WRITES | CLOCKS,
    ),
    Rule(
        "anyio only, so that it works in trio and in asyncio programs",
        ("runtime/*.py", "batch.py", "journal.py", "audit.py"),
        LOOPS,
    ),
    Rule(
        "imported at every start of the command: heavy packages are imported where used",
        ("__main__.py", "cli/__init__.py"),
        HEAVY,
        True,
    ),
)


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, by its full name; `top` where it happens when the module is imported."""

    line: int
    module: str
    top: bool


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _imported(node: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> Iterator[str]:
    """Full names; `from tinyvisor import spec` may name a module, so it is given as ``tinyvisor.spec``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = package[: len(package) - node.level + 1] if node.level else ()
    module = ".".join((*base, *([node.module] if node.module else [])))
    if module == "tinyvisor":
        yield from (f"tinyvisor.{alias.name}" for alias in node.names)
    else:
        yield module


def imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[Import]:
    """Every import of a module but those for type checkers; `package` is what holds the module."""

    def walk(node: ast.AST, top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                for module in _imported(child, package):
                    yield Import(child.lineno, module, top)
            elif isinstance(child, ast.If) and _is_type_checking(child.test):
                for other in child.orelse:
                    yield from walk(ast.Module([other], []), top)
            else:
                yield from walk(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from walk(tree, True)


def _place(name: str) -> tuple[int, frozenset[str]] | None:
    return next(((level, group) for level, layer in enumerate(LAYERS) for group in layer if name in group), None)


def _check_layers(file: str, found: list[Import]) -> Iterator[tuple[int, str]]:
    name = file.split("/", maxsplit=1)[0].removesuffix(".py")
    place = _place(name)
    if place is None:
        yield 1, f'"{name}" has no place in LAYERS: give it one'
        return
    level, group = place
    for item in found:
        words = item.module.split(".")
        if words[0] != "tinyvisor":
            continue
        target = words[1] if len(words) > 1 else "__init__"
        other = _place(target)
        if other is None and len(words) > 1 and not (ROOT / "tinyvisor" / f"{target}.py").exists():
            other, target = _place("__init__"), "__init__"  # `from tinyvisor import Spec`: a name out of the package
        if other is None:
            yield item.line, f'"{target}" has no place in LAYERS: give it one'
        elif target not in group and other[0] >= level:
            yield item.line, f"imports go one way: {name} must not import {target}"


def _check_rule(rule: Rule, tree: ast.Module, found: list[Import]) -> Iterator[tuple[int, str]]:
    for item in found:
        if item.module.split(".")[0] in rule.imports and (item.top or not rule.top_only):
            yield item.line, f"imports {item.module} ({rule.name})"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if called in rule.calls:
                yield node.lineno, f"calls {called}() ({rule.name})"
        elif rule.pure_os and isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            if node.attr not in HARMLESS_OS:
                yield node.lineno, f"uses os.{node.attr} ({rule.name})"
        elif rule.pure_os and isinstance(node, ast.ImportFrom) and node.module == "os":
            for alias in node.names:
                if alias.name not in HARMLESS_OS:
                    yield node.lineno, f"imports os.{alias.name} ({rule.name})"


def check(file: str, source: str) -> list[str]:
    """What is wrong with one module, as ``tinyvisor/file.py:line: what``.

    Args:
        file: its path in the package, with slashes.
    """
    tree = ast.parse(source)
    found = list(imports(tree, ("tinyvisor", *file.split("/")[:-1])))
    problems = list(_check_layers(file, found))
    if ast.get_docstring(tree) is None:
        problems.append((1, "the module has no docstring"))
    for rule in RULES:
        if any(fnmatch(file, pattern) for pattern in rule.files):
            problems += _check_rule(rule, tree, found)
    return [f"tinyvisor/{file}:{line}: {what}" for line, what in sorted(problems)]


def test_the_package_keeps_its_rules() -> None:
    package = ROOT / "tinyvisor"
    problems = [
        problem
        for path in sorted(package.rglob("*.py"))
        for problem in check(path.relative_to(package).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert not problems, "\n" + "\n".join(problems)


def test_python_ptrace_is_the_tracers_alone() -> None:
    """It is GPL-2.0-only, blocks, and is bound to a thread."""
    package = ROOT / "tinyvisor"
    importers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for item in imports(ast.parse(path.read_text(encoding="utf-8")), ())
        if item.module.split(".")[0] == "ptrace"
    }
    assert importers == {"tracing/worker.py"}
    others = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for item in imports(ast.parse(path.read_text(encoding="utf-8")), ("tinyvisor", "tracing"))
        if item.module == "tinyvisor.tracing.worker"
    }
    assert others == {"tracing/__main__.py"}


@pytest.mark.parametrize(
    "file, source, line, what",
    [
        ("spec.py", "import tinyvisor.config", 2, "spec must not import config"),
        ("spec.py", "from tinyvisor.state import Exit", 2, "spec must not import state"),
        ("errors.py", "from tinyvisor.units import x", 2, "errors must not import units"),
        ("errors.py", "def f():\n    from tinyvisor.spec import Spec", 3, "errors must not import spec"),
        ("config.py", "from tinyvisor import policy", 2, "config must not import policy"),
        ("config.py", "from . import supervisor", 2, "config must not import supervisor"),
        ("config.py", "from .runtime import plan", 2, "config must not import runtime"),
        ("policy.py", "from tinyvisor import Spec", 2, "policy must not import __init__"),
        ("runtime/engine.py", "from tinyvisor.config import load", 2, "runtime must not import config"),
        ("runtime/engine.py", "from ..policy import decide", 2, "runtime must not import policy"),
        ("runtime/engine.py", "import tinyvisor.cli.up", 2, "runtime must not import cli"),
        ("supervisor.py", "from tinyvisor.batch import run", 2, "supervisor must not import batch"),
        ("batch.py", "from tinyvisor.control import serve", 2, "batch must not import control"),
        ("control.py", "from tinyvisor.cli import cli", 2, "control must not import cli"),
        ("novelty.py", "", 1, '"novelty" has no place in LAYERS'),
        ("runtime/engine.py", "import trio", 2, "imports trio (anyio only"),
        ("batch.py", "def f():\n    from asyncio import sleep", 3, "imports asyncio (anyio only"),
        ("policy.py", "import time", 2, "imports time (a pure module"),
        ("policy.py", "from random import random", 2, "imports random (a pure module"),
        ("policy.py", "import datetime\ndatetime.datetime.now()", 3, "calls now() (a pure module"),
        ("runtime/plan.py", "import anyio.to_thread", 2, "imports anyio.to_thread (a pure module"),
        ("runtime/plan.py", "import os\nos.fork()", 3, "uses os.fork (a pure module"),
        ("runtime/plan.py", "from os import path, getpid", 2, "imports os.getpid (a pure module"),
        ("runtime/seccomp.py", "open('/proc/cpuinfo')", 2, "calls open() (a pure module"),
        ("runtime/steps.py", "p.read_text()", 2, "calls read_text() (a pure module"),
        ("config.py", "import subprocess", 2, "imports subprocess (config reads files"),
        ("yamlfile.py", "p.write_text('')", 2, "calls write_text() (config reads files"),
        ("__main__.py", "import ruamel.yaml", 2, "imports ruamel.yaml (imported at every start"),
        ("__main__.py", "try:\n    import rich\nexcept ImportError: pass", 3, "imports rich (imported at every start"),
        ("cli/__init__.py", "class A:\n    from pydantic import BaseModel", 3, "imports pydantic (imported at every start"),
    ],
)
def test_the_checker_finds(file: str, source: str, line: int, what: str) -> None:
    problems = check(file, f'"""Doc."""\n{source}\n')
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"tinyvisor/{file}:{line}: ")
    assert what in problems[0]


def test_the_checker_finds_a_missing_docstring() -> None:
    assert check("spec.py", "import re\n") == ["tinyvisor/spec.py:1: the module has no docstring"]


@pytest.mark.parametrize(
    "file, source",
    [
        ("config.py", "from tinyvisor.yamlfile import load\nfrom tinyvisor.spec import Spec\npath.read_text()\nopen('f')"),
        ("policy.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trio"),
        (
            "runtime/engine.py",
            "import anyio\nfrom tinyvisor.runtime import plan\nfrom . import steps\nfrom .cgroup import Layout",
        ),
        ("runtime/verdict.py", "import os\nos.waitstatus_to_exitcode(0)"),
        ("spec.py", "import os\nfrom tinyvisor.errors import SpecError\nos.fspath('')\nos.path.join('')"),
        ("supervisor.py", "import trio\nimport time\nfrom tinyvisor import policy, runtime"),
        ("cli/__init__.py", "import click\ndef up():\n    import trio\n    from tinyvisor.supervisor import run"),
        ("cli/up.py", "import trio\nfrom tinyvisor.cli import shared\nfrom . import failures"),
        ("__init__.py", "from tinyvisor.spec import Spec"),
        ("__main__.py", "from tinyvisor.cli import cli"),
    ],
)
def test_the_checker_allows(file: str, source: str) -> None:
    assert check(file, f'"""Doc."""\n{source}\n') == []


@pytest.mark.skipif(not (ROOT / "tinyvisor" / "__main__.py").exists(), reason="there is no command yet")
def test_starting_the_command_imports_nothing_heavy() -> None:
    code = f"import sys, tinyvisor.__main__; print(*sorted({set(HEAVY)!r} & sys.modules.keys()))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "COVERAGE_"))}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    assert run.stdout.split() == [], "imported by `import tinyvisor.__main__`; see python -X importtime"
