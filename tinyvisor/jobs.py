"""Job files → jobs, one at a time, numbered and checked: YAML, JSON Lines, or a command template and its arguments.

A job says in the spec's names what its container is, and has besides `id`, `stdin`, `files`, `collect`, `repeat` and `retry`.
What it does not say comes from its defaults. Nothing is kept of the jobs that were read but a digest of each id, so that an
id given twice is found. Pure but for reading files.

YAML files have variables replaced as configuration files do, but not in `stdin` and `files`; JSON Lines are data and are
taken as they are.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar

from pydantic import Field, PlainValidator, WithJsonSchema

from tinyvisor.config import (
    ContainerModel,
    Duration,
    Path_,
    Short,
    Size,
    SourceFile,
    SpecBuilder,
    Text,
    interpolate,
    near,
    one_line,
    shown,
    split_words,
    validate,
)
from tinyvisor.digests import WIDTH, Digests
from tinyvisor.errors import ConfigProblem, SpecError
from tinyvisor.job import Job, check_relative
from tinyvisor.jsonlines import locate, parse_line
from tinyvisor.spec import Spec
from tinyvisor.units import format_size
from tinyvisor.yamlfile import Variables, parse_yaml, read_text
from tinyvisor.yamlnode import Entry as YamlEntry
from tinyvisor.yamlnode import Mark, Node, TextError

DOCUMENTS = (".yaml", ".yml", ".json")
"""Suffixes of files that are one document; all others are JSON Lines."""
MAX_LINE = 64 << 20
"""Bytes of one line."""
MAX_ID = 200
OUTPUT_LIMIT = 1 << 20
"""`Spec.output_limit` of jobs that say nothing else."""
MAX_SHAPES = 256
"""Containers that are kept ready for the jobs that differ in their command and files only."""

_OWN = ("id", "command", "stdin", "files", "collect", "repeat")
_LITERAL = ("stdin", "files")
"""Keys in which variables stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedJob(Job):
    """A job of a batch.

    Attributes:
        index: its number in the batch, from 1.
        attempt: 1, and one more for each retry.
        place: where it comes from, ``"jobs.yaml:7"``.
        digest: of its id and all it says, defaults included; `digests.WIDTH` bytes.
    """

    index: int
    attempt: int = 1
    place: str = ""
    digest: bytes = b""

    def again(self) -> NumberedJob:
        """The next attempt."""
        return replace(self, attempt=self.attempt + 1)


@dataclass(frozen=True, slots=True)
class Invalid:
    """In the place of a job that can't be run: why.

    Attributes:
        file: it stands for a whole file, with all the jobs in it.
    """

    problems: tuple[ConfigProblem, ...]
    file: bool = False


Contents = bytes | Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a job, or a set of defaults, says; None and empty where it says nothing.

    Attributes:
        fields: of `Spec`, all but ``command``.
        entrypoint, command: one after the other they are the `Spec`'s command.
        repeat: how often it is run, >= 1.
        retry: as `Job.retry`.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    id: str | None = None
    stdin: Contents | None = None
    files: Mapping[str, Contents] = field(default_factory=dict)
    collect: tuple[str, ...] | None = None
    repeat: int | None = None
    retry: str | None = None

    def over(self, base: Draft) -> Draft:
        """`self`, and where it says nothing `base`. Environment, ulimits and files are joined by name, mounts by target."""
        fields = {**base.fields, **self.fields}
        for name in ("environment", "ulimits"):
            if name in fields:
                fields[name] = {**base.fields.get(name, {}), **self.fields.get(name, {})}
        taken = {mount.target for name in ("volumes", "tmpfs") for mount in self.fields.get(name, ())}
        for name in ("volumes", "tmpfs"):
            if name in fields:
                kept = [mount for mount in base.fields.get(name, ()) if mount.target not in taken]
                fields[name] = (*kept, *self.fields.get(name, ()))
        return Draft(
            fields=fields,
            entrypoint=base.entrypoint if self.entrypoint is None else self.entrypoint,
            command=base.command if self.command is None else self.command,
            id=self.id,
            stdin=base.stdin if self.stdin is None else self.stdin,
            files={**base.files, **self.files},
            collect=base.collect if self.collect is None else self.collect,
            repeat=base.repeat if self.repeat is None else self.repeat,
            retry=base.retry if self.retry is None else self.retry,
        )

    @property
    def words(self) -> tuple[str, ...]:
        return (*(self.entrypoint or ()), *(self.command or ()))


# --- What a job's keys mean. ---


def _id(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID or not value.isprintable():
        raise ValueError(f"expected 1 to {MAX_ID} printable characters, got {shown(value)}")
    return value


def _repeat(value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,9}", value.strip()) or not int(value):
        raise ValueError(f"expected how often to run it, 1 or more, got {shown(value)}")
    return int(value)


def _retry(value: Any) -> str:
    if value != "never":
        raise ValueError(f"expected never, got {shown(value)}; how often others are run again is --retries' to say")
    return "never"


def _contents(value: Any) -> Contents:
    """``"text"``, ``{text: …}``, ``{base64: …}``, ``{file: PATH}``."""
    if isinstance(value, str):
        return value.encode()
    forms = ("text", "file", "base64")
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"expected text, or one of text, file and base64 with a value, got {shown(value)}")
    ((form, given),) = value.items()
    if form not in forms:
        raise ValueError(f"there is no such key{near(form, forms)}; expected text, or file or base64 with a value")
    if not isinstance(given, str):
        raise ValueError(f"{form}: expected text, got {shown(given)}")
    if form == "file":
        return Path(given)
    if form == "text":
        return given.encode()
    try:
        return base64.b64decode("".join(given.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("base64: not base64") from None


def _located(contents: Contents, base_dir: Path) -> Contents:
    """A file by its absolute path."""
    if isinstance(contents, bytes):
        return contents
    if "\0" in str(contents):
        raise ValueError("must not contain NUL")
    path = Path(os.path.abspath(base_dir / contents.expanduser()))
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(f'"{path}" is not a regular file')
    except OSError as error:
        raise ValueError(f'"{path}" can\'t be read: {error.strerror}') from None
    return path


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_CONTENTS = WithJsonSchema({"type": ["string", "object"]})


class _JobModel(ContainerModel):
    """One job: a container, what goes in and what comes back."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        "name": 'a job has no name; use "id"',
        "restart": "a job runs once; see --retries, and timeout to end it",
        "backoff": "a job runs once; see --retries",
        "start_limit": "a job runs once; see --retries",
        "success_exit_codes": 'a job is ok when it exits with 0; let "sh -c" judge others',
        "restart_prevent_exit_codes": "a job runs once; see --retries",
        "restart_force_exit_codes": "a job runs once; see --retries",
        "schedule": "a job runs once; use a service",
        "depends_on": "jobs don't wait for each other",
        "logging": "a job's output is in the results; see --output-dir",
        "healthcheck": "a job has no health; use a service",
        "on_unhealthy": "a job has no health; use a service",
        "ready_log": "nobody waits until a job is ready; use a service",
        "post_start": 'not for jobs; let "sh -c" do it',
        "pre_stop": 'not for jobs; let "sh -c" do it',
        "scale": 'use "repeat"',
        "profiles": "not for jobs; put them into a file of their own",
    }

    cpu_time: Duration | None = Field(None, description="CPU seconds after which everything is killed")
    output_limit: Size | None = Field(None, description="bytes of stdout and stderr each; more is killed")
    id: Annotated[str, PlainValidator(_id), WithJsonSchema({"type": "string"})] | None = None
    stdin: Annotated[Any, PlainValidator(_contents), _CONTENTS] | None = None
    files: dict[str, Annotated[Any, PlainValidator(_contents), _CONTENTS]] | None = None
    collect: Annotated[tuple[Text, ...], Short(_listed, {"type": "string"})] | None = None
    repeat: Annotated[int, PlainValidator(_repeat), WithJsonSchema({"type": "integer"})] | None = None
    retry: Annotated[str, PlainValidator(_retry), WithJsonSchema({"const": "never"})] | None = None


_MADE_OF: Mapping[str, tuple[str, ...]] = {
    "environment": ("environment", "env_file"),
    "volumes": ("volumes",),
    "tmpfs": ("tmpfs", "volumes"),
    "ulimits": ("ulimits",),
    "capabilities": ("cap_add", "cap_drop"),
    "cpus": ("cpus", "deploy"),
    "mem_limit": ("mem_limit", "deploy"),
    "pids_limit": ("pids_limit", "deploy"),
}
"""Fields of `Spec` that are always built, and the keys that must be there for them to count."""


class _DraftBuilder(SpecBuilder):
    """Makes a `Draft` of a model."""

    _model: _JobModel

    def draft(self) -> Draft:
        """What the model says; problems are reported."""
        model = self._model
        for path in model.files or ():
            with self._at("files", path):
                check_relative("files", path)
        for index, pattern in enumerate(model.collect or ()):
            with self._at("collect", index):
                check_relative("collect", pattern)
        return Draft(
            fields=self._given_fields(),
            entrypoint=model.entrypoint,
            command=model.command,
            id=model.id,
            stdin=self._contents_at(("stdin",), model.stdin) if model.stdin is not None else None,
            files={path: self._contents_at(("files", path), contents) for path, contents in (model.files or {}).items()},
            collect=model.collect,
            repeat=model.repeat,
            retry=model.retry,
        )

    def _given_fields(self) -> dict[str, Any]:
        model = self._model
        fields = self.spec_fields()
        del fields["name"], fields["command"]
        for name, keys in _MADE_OF.items():
            if not model.model_fields_set.intersection(keys):
                fields.pop(name, None)
        for name in ("cpu_time", "output_limit"):
            if getattr(model, name) is not None:
                fields[name] = getattr(model, name)
        for name, instead in (("restart_policy", "a job runs once; see --retries"), ("replicas", 'use "repeat"')):
            if model.deploy is not None and getattr(model.deploy, name) is not None:
                self._file.report_at((*self._path, "deploy", name), instead)
        for name in ("tty", "stdin_open"):
            if fields.pop(name, False):
                self._file.report_at((*self._path, name), 'a job has no terminal, and its input is "stdin"')
        if str(fields.get("network_mode", "none")).startswith("service:"):
            self._file.report_at((*self._path, "network_mode"), "a job knows no services; expected none or host")
        return fields

    def _command(self) -> tuple[str, ...]:
        return ("-",)

    def _contents_at(self, path: Path_, contents: Contents) -> Contents:
        with self._at(*path):
            return _located(contents, self._file.base_dir)
        return b""


# --- Containers that many jobs share. ---


@dataclass(frozen=True, slots=True)
class _Shape:
    """What jobs have in common that differ in `_OWN` only."""

    draft: Draft
    spec: Spec
    hash: Any


def _shape(draft: Draft, spec: Spec) -> _Shape:
    hashed = hashlib.blake2b(digest_size=WIDTH)
    for name in sorted(draft.fields):
        value = draft.fields[name]
        if isinstance(value, Mapping):
            value = sorted(value.items())
        elif isinstance(value, frozenset | set):
            value = sorted(value)
        _mix(hashed, name, repr(value))
    return _Shape(draft, spec, hashed)


def _mix(hashed: Any, *parts: str | bytes) -> None:
    """Adds `parts`, each with its length, so that none can pass for another's end."""
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        hashed.update(b"%d:" % len(data))
        hashed.update(data)


def _digest(shape: _Shape, job: Job) -> bytes:
    """Of all that `job` is. Files of the host count by path, size and time of change."""
    hashed = shape.hash.copy()
    _mix(hashed, job.id, str(len(job.spec.command)), *job.spec.command, *_stated(job.stdin))
    for path in sorted(job.files):
        _mix(hashed, path, *_stated(job.files[path]))
    _mix(hashed, "collect", *job.collect)
    if job.retry:
        _mix(hashed, "retry", job.retry)
    return bytes(hashed.digest())


def _stated(contents: Contents | None) -> tuple[str | bytes, ...]:
    if contents is None:
        return ("none",)
    if isinstance(contents, bytes):
        return ("bytes", contents)
    try:
        found = contents.stat()
    except OSError:
        return ("file", str(contents), "gone")
    return ("file", str(contents), f"{found.st_size} {found.st_mtime_ns}")


# --- Templates. ---

_PLACEHOLDER = re.compile(r"\{(?:|\.|/|//|/\.|#)\}")


class Template:
    """A command with places for an argument, in GNU parallel's words. It never sees a shell.

    ``{}`` the argument, ``{.}`` without its extension, ``{/}`` its last part, ``{//}`` its directory, ``{/.}`` its last part
    without extension, ``{#}`` the job's number. Without any of them the argument is put at the end.

    Raises:
        ValueError: there is no command, or a quote is not closed.
    """

    def __init__(self, text: str) -> None:
        try:
            self.words: tuple[str, ...] = tuple(shlex.split(text))
        except ValueError:
            raise ValueError(f"a quote or backslash is not finished in {shown(text)}") from None
        if not self.words:
            raise ValueError("expected a command")
        if not any(_PLACEHOLDER.search(word) for word in self.words):
            self.words = (*self.words, "{}")

    def command(self, argument: str, number: int) -> tuple[str, ...]:
        """The words for one argument."""
        directory, slash, name = argument.rpartition("/")
        values = {
            "{}": argument,
            "{.}": directory + slash + _stem(name),
            "{/}": name,
            "{//}": directory or ("/" if slash else "."),
            "{/.}": _stem(name),
            "{#}": str(number),
        }
        return tuple(_PLACEHOLDER.sub(lambda match: values[match[0]], word) for word in self.words)


def _stem(name: str) -> str:
    """``"a.tar.gz"`` → ``"a.tar"``; ``".profile"`` stays."""
    stem, dot, _ = name.rpartition(".")
    return stem if dot and stem else name


# --- Reading. ---


class Reader:
    """Reads the jobs of one batch in their order, from as many files as there are.

    Args:
        base: what all jobs are by default; `OUTPUT_LIMIT` comes below it.
        environ: for ``${VAR}`` and for variables without a value.
        warn: gets one line for each use of a variable that is not set.
        memory_budget: bytes that no job's mem_limit may exceed; each must have one. None: no budget.
    """

    def __init__(
        self,
        base: Draft = Draft(),
        *,
        environ: Mapping[str, str],
        warn: Callable[[str], None] = lambda text: None,
        memory_budget: int | None = None,
    ) -> None:
        self._base = base.over(Draft(fields={"output_limit": OUTPUT_LIMIT}))
        self._environ, self._warn, self._budget = environ, warn, memory_budget
        self._shapes: dict[tuple[Path, str], _Shape] = {}
        self._defaults: dict[Path, Draft] = {}
        self._roots: dict[Path, SourceFile] = {}
        self._ids = Digests()
        self._next = 1

    def rewind(self) -> None:
        """Numbers and ids start anew, for another reading of the same files."""
        self._ids = Digests()
        self._next = 1
        self._warn = lambda text: None

    def file(self, path: Path) -> Iterator[NumberedJob | Invalid]:
        """The jobs of one file. A file that can't be read is one `Invalid`."""
        try:
            if path.suffix in DOCUMENTS:
                yield from self._document(path)
            else:
                with open(path, "rb") as lines:
                    for number, line in enumerate(_lines(lines), 1):
                        yield from self.line(path, number, line)
        except OSError as error:
            yield Invalid((ConfigProblem(path, 1, 1, "", f"can't be read: {error.strerror}"),), file=True)

    def line(self, path: Path, number: int, line: bytes) -> Iterator[NumberedJob | Invalid]:
        """The jobs of a line of JSON: one, or as many as it repeats; none where the line is blank."""
        if not line.strip():
            return
        file = SourceFile(path, self._environ, [], self._warn)
        try:
            text = _decoded(line, number)
            data = parse_line(text, number, lambda mark, problem: file.report(mark, "", problem))
        except TextError as error:
            file.report(error.mark, "", str(error))
        if not file.problems:
            yield from self._jobs(file, (), data, number, lambda: locate(text, number))
        else:
            self._next += 1
            yield Invalid(tuple(file.problems))

    def argument(self, template: Template, argument: str, path: Path, number: int) -> Iterator[NumberedJob | Invalid]:
        """The job that `template` makes of the `number`-th argument."""
        file = SourceFile(path, self._environ, [], self._warn, Node(Mark(number, 1), None))
        draft = Draft(command=template.command(argument, self._next))
        shape = self._shapes.get((path, ""))
        if shape is None:
            spec = Spec(command=("-",), **self._base.fields)
            shape = self._keep((path, ""), _shape(self._base, spec))
        yield from self._finish(file, (), shape, draft, number, lambda: file.root)

    def defaults(self, path: Path) -> Draft | Invalid:
        """The mapping in `path` as defaults."""
        file = SourceFile(path, self._environ, [], self._warn)
        if self._read_document(file):
            if isinstance(file.root.value, dict):
                file.root = self._interpolated(file, file.root, (), Variables(self._environ))
                return self._default_draft(file, ()) or Invalid(tuple(file.problems))
            file.report(file.root.mark, "", f"expected the keys of a job, got {shown(file.root.plain())}")
        return Invalid(tuple(file.problems))

    # A document.

    def _document(self, path: Path) -> Iterator[NumberedJob | Invalid]:
        file = self._roots.get(path)
        if file is None:
            file = SourceFile(path, self._environ, [], self._warn)
            where = self._prepare(file)
            if file.problems:
                yield Invalid(tuple(file.problems), file=True)
                return
            self._roots[path] = file
        else:
            where = () if isinstance(file.root.value, list) else ("jobs",)
        for index, node in enumerate(_items(file.root.at(where))):
            file.problems = []
            yield from self._jobs(file, (*where, index), node.plain(), node.mark.line, lambda: file.root)

    def _prepare(self, file: SourceFile) -> Path_:
        """Fills `file.root` and takes its defaults; where the list of jobs is."""
        if not self._read_document(file):
            return ()
        root = file.root.value
        if isinstance(root, list):
            file.root = self._interpolated_list(file, file.root, (), Variables(self._environ))
            return ()
        if not isinstance(root, dict) or "jobs" not in root:
            file.report(file.root.mark, "", f'expected a list of jobs, or "jobs:" with one; got {shown(file.root.plain())}')
            return ()
        for key in root:
            if key not in ("jobs", "defaults") and not key.startswith("x-"):
                file.report_at((key,), f"there is no such key{near(key, ('jobs', 'defaults'))}")
        variables = Variables(self._environ)
        jobs = root["jobs"].node
        if not isinstance(jobs.value, list):
            file.report_at(("jobs",), f"expected a list of jobs, got {shown(jobs.plain())}")
            return ()
        entries = dict(root) | {"jobs": YamlEntry(root["jobs"].mark, self._interpolated_list(file, jobs, ("jobs",), variables))}
        if "defaults" in root:
            node = self._interpolated(file, root["defaults"].node, ("defaults",), variables)
            entries["defaults"] = YamlEntry(root["defaults"].mark, node)
        file.root = Node(file.root.mark, entries)
        if "defaults" in root:
            draft = self._default_draft(file, ("defaults",))
            if draft is not None:
                self._defaults[file.path] = draft
        return ("jobs",)

    def _read_document(self, file: SourceFile) -> bool:
        try:
            file.root = parse_yaml(read_text(file.path), lambda mark, problem: file.report(mark, "", problem))
        except TextError as error:
            hint = "; write more jobs as JSON Lines in a .jsonl file" if "larger than" in str(error) else ""
            file.report(error.mark, "", f"{error}{hint}")
        except OSError as error:
            file.report(Mark(1, 1), "", f"can't be read: {error.strerror}")
        except ValueError as error:
            file.report(Mark(1, 1), "", f"can't be read: {error}")
        return not file.problems

    def _interpolated_list(self, file: SourceFile, node: Node, path: Path_, variables: Variables) -> Node:
        items = [self._interpolated(file, item, (*path, index), variables) for index, item in enumerate(_items(node))]
        return Node(node.mark, items)

    def _interpolated(self, file: SourceFile, node: Node, path: Path_, variables: Variables) -> Node:
        """A job's mapping with variables replaced, but for `_LITERAL` keys."""
        if not isinstance(node.value, dict):
            return interpolate(file, node, path, node.mark, variables)
        literal = {key: entry for key, entry in node.value.items() if key in _LITERAL}
        others = {key: entry for key, entry in node.value.items() if key not in literal}
        replaced = interpolate(file, Node(node.mark, others), path, node.mark, variables)
        assert isinstance(replaced.value, dict)
        return Node(node.mark, {**replaced.value, **literal})

    def _default_draft(self, file: SourceFile, path: Path_) -> Draft | None:
        data = file.root.at(path).plain()
        model, bad = validate(file, path, data, _JobModel)
        if model is None:
            return None
        draft = _DraftBuilder(file, path, model, "job", bad).draft()
        if draft.id is not None:
            file.report_at((*path, "id"), "each job has its own")
        return None if file.problems else draft

    # One job.

    def _jobs(
        self, file: SourceFile, path: Path_, data: Any, line: int, root: Callable[[], Node]
    ) -> Iterator[NumberedJob | Invalid]:
        try:
            shape = self._shape_of(file, path, data)
            draft = _own(data, file.base_dir)
        except ValueError as error:
            self._next += 1
            yield self._explain(file, path, data, root, error)
            return
        yield from self._finish(file, path, shape, draft, line, root)

    def _shape_of(self, file: SourceFile, path: Path_, data: Any) -> _Shape:
        if not isinstance(data, dict):
            raise ValueError(f"expected a job's keys and values, got {shown(data)}")
        rest = {key: value for key, value in data.items() if key not in _OWN}
        key = (file.path, repr(rest) if rest else "")
        shape = self._shapes.get(key)
        if shape is None:
            trial = SourceFile(file.path, self._environ, [], lambda text: None)
            draft = self._draft(trial, path, rest)
            spec = None if draft is None else self._spec(trial, path, draft)
            if draft is None or spec is None or trial.problems:
                raise ValueError("wrong")  # `_explain` finds out what
            shape = self._keep(key, _shape(draft, spec))
        return shape

    def _keep(self, key: tuple[Path, str], shape: _Shape) -> _Shape:
        if len(self._shapes) >= MAX_SHAPES:
            self._shapes.clear()
        self._shapes[key] = shape
        return shape

    def _draft(self, file: SourceFile, path: Path_, data: Any) -> Draft | None:
        """What a job says with what it doesn't say; problems are reported."""
        model, bad = validate(file, path, data, _JobModel)
        if model is None:
            return None
        draft = _DraftBuilder(file, path, model, "job", bad).draft()
        return draft.over(self._defaults.get(file.path, Draft()).over(self._base))

    def _spec(self, file: SourceFile, path: Path_, draft: Draft) -> Spec | None:
        """A `Spec` with a command that stands for others."""
        model = ContainerModel.model_construct()
        spec: Spec | None = SpecBuilder(file, path, model, "job", frozenset()).checked(Spec, {**draft.fields, "command": ("-",)})
        return spec

    def _explain(self, file: SourceFile, path: Path_, data: Any, root: Callable[[], Node], error: ValueError) -> Invalid:
        """Goes through a job once more to find all that is wrong, with its places."""
        file.problems = []
        file.root = root()
        draft = self._draft(file, path, data)
        if draft is not None and not file.problems:
            self._spec(file, path, draft)
        if not file.problems:
            where = error.field.split(".") if isinstance(error, SpecError) else []
            file.report_at((*path, *where), error.problem if isinstance(error, SpecError) else str(error))
        found = sorted(file.problems, key=lambda problem: (problem.line, problem.column))
        return Invalid(tuple(found))

    def _finish(
        self, file: SourceFile, path: Path_, shape: _Shape, own: Draft, line: int, root: Callable[[], Node]
    ) -> Iterator[NumberedJob | Invalid]:
        """Numbers a job, or each of its repetitions."""
        draft = own.over(shape.draft) if own.files or shape.draft.files else own
        command = (*(shape.draft.entrypoint or ()), *((shape.draft.command if own.command is None else own.command) or ()))
        repeat = own.repeat or shape.draft.repeat
        for number in range(1, (repeat or 1) + 1):
            index = self._next
            self._next += 1
            name = own.id or str(index if repeat is None else index - number + 1)
            try:
                if not command:
                    raise SpecError("command", "expected a program to run")
                job = NumberedJob(
                    spec=shape.spec.with_(command=command),
                    id=name if repeat is None else f"{name}#{number}",
                    stdin=shape.draft.stdin if own.stdin is None else own.stdin,
                    files=draft.files,
                    collect=(shape.draft.collect if own.collect is None else own.collect) or (),
                    retry=shape.draft.retry or "",
                    index=index,
                    place=f"{file.path}:{line}",
                )
                self._check_budget(job.spec)
                self._check_id(job.id)
            except ValueError as error:
                file.root = root()
                file.problems = []
                where = error.field.split(".") if isinstance(error, SpecError) else []
                file.report_at((*path, *where), error.problem if isinstance(error, SpecError) else str(error))
                yield Invalid(tuple(file.problems))
                return
            object.__setattr__(job, "digest", _digest(shape, job))
            yield job

    def _check_budget(self, spec: Spec) -> None:
        if self._budget is None:
            return
        if spec.mem_limit is None:
            raise SpecError("mem_limit", "is required with --memory-budget")
        if spec.mem_limit > self._budget:
            sizes = f"{format_size(spec.mem_limit)} is more than the memory budget of {format_size(self._budget)}"
            raise SpecError("mem_limit", sizes)

    def _check_id(self, name: str) -> None:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=WIDTH).digest()
        if not self._ids.put(digest):
            raise SpecError("id", f"{shown(name)} is the id of a job before this one")


def _own(data: Mapping[str, Any], base_dir: Path) -> Draft:
    """The keys of a job that its `_Shape` does not have."""
    command = split_words(data.get("command"))
    collect = _listed(data.get("collect"))
    for words in (command, collect):
        if words is not None and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise ValueError("expected a list of text")
    files = data.get("files")
    if files is not None and not isinstance(files, dict):
        raise ValueError(f"expected keys and values, got {shown(files)}")
    stdin, name, repeat = data.get("stdin"), data.get("id"), data.get("repeat")
    return Draft(
        command=None if command is None else tuple(command),
        collect=None if collect is None else tuple(collect),
        files={path: _located(_contents(value), base_dir) for path, value in (files or {}).items()},
        stdin=None if stdin is None else _located(_contents(stdin), base_dir),
        id=None if name is None else _id(name),
        repeat=None if repeat is None else _repeat(repeat),
    )


def _items(node: Node) -> list[Node]:
    return node.value if isinstance(node.value, list) else []


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines of at most `MAX_LINE` bytes; of a longer one its beginning, which is then no JSON."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            while (more := file.readline(MAX_LINE)) and not more.endswith(b"\n"):
                pass
        yield line


def _decoded(line: bytes, number: int) -> str:
    if len(line) > MAX_LINE:
        raise TextError(Mark(number, 1), f"the line is longer than {MAX_LINE >> 20} MiB")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise TextError(Mark(number, error.start + 1), "the line is not UTF-8 text") from None


def describe(job: NumberedJob) -> str:
    """A job for people: its id, and its command where the id is only a number."""
    text = one_line(job.id)
    if job.id.partition("#")[0].isdecimal():
        command = one_line(shlex.join(job.spec.command))
        text += f" ({command if len(command) <= 60 else command[:57] + '...'})"
    return text
