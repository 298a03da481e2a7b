"""Job files and templates: what is read, what it means, and the places of what is wrong."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyvisor import jobs
from tinyvisor.digests import WIDTH, Digests
from tinyvisor.errors import SpecError
from tinyvisor.jobs import OUTPUT_LIMIT, Draft, Invalid, NumberedJob, Reader, Template, describe
from tinyvisor.jsonlines import locate, parse_line
from tinyvisor.spec import Spec, Tmpfs, Ulimit, Volume
from tinyvisor.yamlnode import Mark, TextError

NOTHING = Draft()


def read(path: Path, text: str | bytes, base: Draft = NOTHING, **options: Any) -> list[NumberedJob | Invalid]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(Reader(base, environ=options.pop("environ", {}), **options).file(path))


def good(found: list[NumberedJob | Invalid]) -> list[NumberedJob]:
    assert not [item for item in found if isinstance(item, Invalid)], found
    return [item for item in found if isinstance(item, NumberedJob)]


def problems(found: list[NumberedJob | Invalid], path: Path) -> list[str]:
    return [str(problem).removeprefix(f"{path}:") for item in found if isinstance(item, Invalid) for problem in item.problems]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return tmp_path / "jobs.jsonl"


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    return tmp_path / "jobs.yaml"


# ---- what is read ----


def test_a_line_is_a_job(lines: Path) -> None:
    entry: dict[str, Any] = {
        "id": "first", "command": ["sh", "-c", "cat $HOME"], "mem_limit": "64m", "pids_limit": 5, "cpus": 0.5, "read_only": True,
        "environment": {"A": "1"}, "timeout": 2.5, "cpu_time": "500ms", "output_limit": "2k", "user": "65534",
        "stdin": "in\n", "files": {"main.py": "print('$x')", "b": {"base64": base64.b64encode(b"\0\xff").decode()}},
        "collect": ["out/*"],
    }  # fmt: skip
    (job,) = good(read(lines, json.dumps(entry) + "\n"))
    spec = Spec(
        command=("sh", "-c", "cat $HOME"), mem_limit=64 << 20, pids_limit=5, cpus=0.5, read_only=True, environment={"A": "1"},
        timeout=2.5, cpu_time=0.5, output_limit=2048, user="65534",
    )  # fmt: skip
    assert job.spec == spec.with_(name=job.spec.name)
    assert (job.id, job.index, job.attempt, job.place) == ("first", 1, 1, f"{lines}:1")
    assert (job.stdin, job.collect) == (b"in\n", ("out/*",))
    assert job.files == {"main.py": b"print('$x')", "b": b"\0\xff"}


def test_blank_lines_count_but_are_no_jobs(lines: Path) -> None:
    found = good(read(lines, '\n{"command": "a"}\n  \n\r\n{"command": ["b"]}'))
    assert [(job.id, job.spec.command, job.place) for job in found] == [
        ("1", ("a",), f"{lines}:2"),
        ("2", ("b",), f"{lines}:5"),
    ]
    assert good(read(lines, "")) == []
    assert good(read(lines, '\ufeff{"command": "a"}'))[0].id == "1"


def test_output_is_bounded_unless_somebody_says_otherwise(lines: Path) -> None:
    assert good(read(lines, '{"command": "a"}'))[0].spec.output_limit == OUTPUT_LIMIT
    assert good(read(lines, '{"command": "a"}', Draft(fields={"output_limit": 5})))[0].spec.output_limit == 5


def test_yaml_is_a_list_or_jobs_with_defaults(yaml: Path, tmp_path: Path) -> None:
    first, second = good(read(yaml, "- command: echo a b\n  id: x\n- {command: [b]}\n"))
    assert (first.id, first.spec.command, second.id, second.place) == ("x", ("echo", "a", "b"), "2", f"{yaml}:3")
    (tmp_path / "input").write_text("x")
    found = good(read(yaml, """
x-shared: &shared {mem_limit: 1m}
defaults:
  <<: *shared
  entrypoint: [python3, -I]
  environment: {A: 1, B: 2}
  volumes: [/usr:/x:ro, /usr:/y:ro]
  ulimits: {nofile: 5, core: 0}
  files: {a: from defaults, b: from defaults}
  stdin: {file: input}
  collect: out
  timeout: 1m
jobs:
- command: a.py
- {command: [b.py], mem_limit: 2m, environment: [B=3, C=4], ulimits: {nofile: 6}, tmpfs: /y, files: {b: own}, stdin: "",
   collect: []}
"""))  # fmt: skip
    one, two = found
    assert one.spec.command == ("python3", "-I", "a.py")
    assert (one.spec.mem_limit, two.spec.mem_limit, two.spec.timeout) == (1 << 20, 2 << 20, 60.0)
    assert two.spec.environment == {"A": "1", "B": "3", "C": "4"}
    assert two.spec.ulimits == {"nofile": Ulimit(6, 6), "core": Ulimit(0, 0)}
    assert two.spec.volumes == (Volume(Path("/usr"), "/x", read_only=True),)
    assert two.spec.tmpfs == (Tmpfs("/y"),)
    assert (one.stdin, two.stdin) == (tmp_path / "input", b"")
    assert two.files == {"a": b"from defaults", "b": b"own"}
    assert (one.collect, two.collect) == (("out",), ())


def test_nearer_defaults_win(yaml: Path) -> None:
    base = Draft(fields={"mem_limit": 1, "pids_limit": 1, "timeout": 1.0}, command=("default",))
    text = "defaults: {mem_limit: 2, pids_limit: 2}\njobs: [{mem_limit: 3}, {pids_limit: -1}]"
    first, second = good(read(yaml, text, base))
    assert (first.spec.mem_limit, first.spec.pids_limit, first.spec.timeout) == (3, 2, 1.0)
    assert second.spec.pids_limit is None
    assert first.spec.command == ("default",)


def test_defaults_of_a_file_are_of_that_file_only(tmp_path: Path) -> None:
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text("defaults: {mem_limit: 1m}\njobs: [{command: a}]")
    two.write_text("[{command: a, id: b}]")
    reader = Reader(environ={})
    found = good([*reader.file(one), *reader.file(two)])
    assert [(job.index, job.spec.mem_limit) for job in found] == [(1, 1 << 20), (2, None)]


def test_variables_are_replaced_in_yaml_and_not_in_contents(yaml: Path, lines: Path) -> None:
    text = '[{id: "$A", command: "echo $A $$A", stdin: "$A", files: {x: "$A ${"}}]'
    (job,) = good(read(yaml, text, environ={"A": "value"}))
    assert (job.id, job.spec.command) == ("value", ("echo", "value", "$A"))
    assert (job.stdin, job.files) == (b"$A", {"x": b"$A ${"})
    (job,) = good(read(lines, '{"command": "echo $A"}', environ={"A": "value"}))
    assert job.spec.command == ("echo", "$A")
    warnings: list[str] = []
    read(yaml, "[{command: 'a$B'}]", warn=warnings.append)
    assert len(warnings) == 1


def test_repeat_is_many_jobs(lines: Path) -> None:
    found = good(read(lines, '{"command": "a", "id": "x", "repeat": 3}\n{"command": "b", "repeat": 1}\n{"command": "c"}'))
    assert [(job.id, job.index) for job in found] == [("x#1", 1), ("x#2", 2), ("x#3", 3), ("4#1", 4), ("5", 5)]
    assert len({job.digest for job in found}) == 5


def test_retry_never_is_part_of_what_a_job_is(lines: Path) -> None:
    plain, never = (
        good(read(lines, '{"command": "a", "id": "x"}')),
        good(read(lines, '{"command": "a", "id": "x", "retry": "never"}')),
    )
    assert [job.retry for job in (*plain, *never)] == ["", "never"]
    assert plain[0].digest != never[0].digest
    assert good(read(lines, '{"command": "a"}', Draft(retry="never")))[0].retry == "never"
    (problem,) = problems(read(lines, '{"command": "a", "retry": "once"}'), lines)
    assert problem.startswith('1:18: retry: expected never, got "once"')


def test_a_big_repeat_is_read_as_it_is_run(lines: Path) -> None:
    lines.write_text('{"command": "a", "repeat": 900000000}')
    found: Iterator[Any] = Reader(environ={}).file(lines)
    assert [next(found).id for _ in range(3)] == ["1#1", "1#2", "1#3"]


def test_files_are_relative_to_the_job_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "data").write_text("x")
    path = tmp_path / "a" / "jobs.jsonl"
    monkeypatch.chdir(tmp_path)
    (job,) = good(read(Path("a/jobs.jsonl"), '{"command": "a", "files": {"x": {"file": "data"}}}'))
    assert job.files == {"x": path.parent / "data"}


def test_defaults_file(tmp_path: Path) -> None:
    path = tmp_path / "defaults.yaml"
    path.write_text("mem_limit: 64m\nfiles: {a: x}\nrepeat: 2\n")
    draft = Reader(environ={}).defaults(path)
    assert draft == Draft(fields={"mem_limit": 64 << 20}, files={"a": b"x"}, repeat=2)
    path.write_text("mem_limt: 64m\nid: x\n")
    wrong = Reader(environ={}).defaults(path)
    assert isinstance(wrong, Invalid)
    assert [str(problem).removeprefix(str(path)) for problem in wrong.problems] == [
        ':1:1: mem_limt: there is no such key (did you mean "mem_limit"?)',
        ":2:1: id: each job has its own",
    ]


# ---- what is wrong, and where ----


@pytest.mark.parametrize(
    "line, places",
    [
        ('{"comand": ["a"]}', ['3:2: comand: there is no such key (did you mean "command"?)']),
        ('{"command": ["a"], "mem_limit": "6q"}', ['3:20: mem_limit: "6q" is not a size']),
        ('{"command": ["a"], "cpus": 0}', ["3:20: cpus: must be more than 0"]),
        ('{"command": ["a", 1, {}]}', ["3:22: command[2]: expected text, got keys and values"]),
        ('{"command": "a \'b"}', ["3:2: command: a quote or backslash is not finished"]),
        ('{"id": "x"}', ["3:1: command: expected a program to run"]),
        ('{"command": ["a\\u0000"]}', ["3:2: command: must not contain NUL"]),
        ('{"command": ["a"], "id": ""}', ["3:20: id: expected 1 to 200 printable characters"]),
        ('{"command": ["a"], "id": "a\\u001b"}', ["3:20: id: expected 1 to 200 printable characters"]),
        ('{"command": ["a"], "repeat": 0}', ["3:20: repeat: expected how often to run it"]),
        ('{"command": ["a"], "files": {"../x": "a"}}', ['3:20: files: "../x" must be a path below']),
        ('{"command": ["a"], "files": {"x": {"fil": "a"}}}', ['3:30: files.x: there is no such key (did you mean "file"?)']),
        ('{"command": ["a"], "files": {"x": {"file": "/no/such"}}}', ['3:30: files.x: "/no/such" can\'t be read: No such']),
        ('{"command": ["a"], "stdin": {"file": "/dev/zero"}}', ['3:20: stdin: "/dev/zero" is not a regular file']),
        ('{"command": ["a"], "stdin": {"base64": "?"}}', ["3:20: stdin: base64: not base64"]),
        ('{"command": ["a"], "collect": ["/etc/*"]}', ['3:20: collect: "/etc/*" must be a path below']),
        ('{"command": ["a"], "collect": ["ok", "../x"], "files": {"/x": "a"}, "stdin": {"file": "/no/such"}}',
         ['3:38: collect[1]: "../x" must be a path below', '3:57: files./x: "/x" must be a path', '3:69: stdin: "/no/such"']),
        ('{"command": ["a"], "restart": "always"}', ["3:20: restart: a job runs once"]),
        ('{"command": ["a"], "tty": true, "network_mode": "service:x"}',
         ["3:20: tty: a job has no terminal", "3:33: network_mode: a job knows no services"]),
        ('{"command": ["a"], "deploy": {"restart_policy": {}}}', ["3:31: deploy.restart_policy: a job runs once"]),
        ('{"command": ["a"], "image": "x"}', ["3:20: image: not supported yet"]),
        ('{"command": ["a"], "command": ["b"]}', ['3:20: the key "command" is given twice; first in column 2']),
        ('["a"]', ["3:1: expected keys and values, got a list"]),
        ('{"command": ["a"', ["3:17: not JSON: expecting ',' delimiter"]),
        ("command: a", ["3:1: not JSON: expecting value"]),
        ('{"command": ["a"], "cpus": NaN}', ["3:1: not JSON: NaN is no number"]),
        ('{"command": ["\\ud800"]}', ["3:1: not text: it has half of a surrogate pair"]),
        ("[" * 100_000, ["3:1: nested deeper than 40"]),
        ('{"command": ["a"], "x": ' + "[" * 39 + "]" * 39 + "}", ["3:20: x: there is no such key"]),
        ('{"command": ["a"], "x": ' + "[" * 900 + "]" * 900 + "}", ["3:1: nested deeper than 40"]),
        (b'{"command": "\xff"}', ["3:14: the line is not UTF-8 text"]),
        ('{"command": ["a"], "id": "first"}', ['3:20: id: "first" is the id of a job before this one']),
        ('{"command": ["a"], "volumes": ["/usr:/x"], "tmpfs": "/x"}', ['3:20: volumes: "/x" is mounted twice']),
    ],
)  # fmt: skip
def test_bad_lines_are_told_with_their_place(lines: Path, line: str | bytes, places: list[str]) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    found = read(lines, b'{"command": "a", "id": "first"}\n\n' + raw + b'\n{"command": "a", "id": "last"}\n')
    told = problems(found, lines)
    assert len(told) == len(places), told
    for problem, expected in zip(told, places, strict=True):
        assert problem.startswith(expected), problem
    assert [(item.id, item.index) for item in found if isinstance(item, NumberedJob)] == [("first", 1), ("last", 3)]


@pytest.mark.parametrize(
    "text, places",
    [
        ("- {command: a}\n- {comand: b}\n- 5\n",
         ['2:4: comand: there is no such key (did you mean "command"?)'.replace("comand", "[1].comand", 1),
          '3:3: [2]: expected keys and values, got "5"']),
        ("jobs: [{command: a, mem_limit: x}]\n", ['1:21: jobs[0].mem_limit: "x" is not a size']),
        ("jbos: []\n", ['1:1: expected a list of jobs, or "jobs:" with one']),
        ("jobs: []\ndefault: {}\n", ['2:1: default: there is no such key (did you mean "defaults"?)']),
        ("jobs: {}\n", ["1:1: jobs: expected a list of jobs"]),
        ("defaults: {mem_limit: x}\njobs: [{command: a}]\n", ['1:12: defaults.mem_limit: "x" is not a size']),
        ("", ['1:1: expected a list of jobs, or "jobs:" with one; got nothing']),
        ("- {command: a\n", ["2:1: not YAML"]),
        ("- {command: 'a$'}\n", ['1:4: [0].command: "a$" has a "$" without a name']),
    ],
)  # fmt: skip
def test_bad_yaml_is_told_with_its_place(yaml: Path, text: str, places: list[str]) -> None:
    told = problems(read(yaml, text), yaml)
    assert len(told) == len(places), told
    for problem, expected in zip(told, places, strict=True):
        assert problem.startswith(expected), problem


def test_files_that_cannot_be_read(tmp_path: Path, yaml: Path) -> None:
    for path in (tmp_path / "no.yaml", tmp_path / "no.jsonl", tmp_path):
        (item,) = Reader(environ={}).file(path)
        assert isinstance(item, Invalid)
        assert item.file
        assert "can't be read" in str(item.problems[0])
    (item,) = read(yaml, "# " + "x" * (1 << 20))
    assert isinstance(item, Invalid)
    assert "write more jobs as JSON Lines" in str(item.problems[0])


def test_a_line_has_a_bound(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_LINE", 100)
    found = read(lines, '{"command": "a"}\n' + "x" * 500 + '\n{"command": "b"}\n' + "y" * 101)
    assert [str(p).split(": ")[1] for item in found if isinstance(item, Invalid) for p in item.problems] == [
        "the line is longer than 0 MiB"
    ] * 2
    assert [item.spec.command for item in found if isinstance(item, NumberedJob)] == [("a",), ("b",)]


def test_memory_budget_needs_limits_that_fit(lines: Path) -> None:
    text = '{"command": "a"}\n{"command": "a", "mem_limit": "2m"}\n{"command": "a", "mem_limit": "1m"}\n'
    found = read(lines, text, memory_budget=1 << 20)
    assert problems(found, lines) == [
        "1:1: mem_limit: is required with --memory-budget",
        "2:18: mem_limit: 2.0M is more than the memory budget of 1.0M",
    ]
    assert isinstance(found[2], NumberedJob)


def test_ids_are_checked_across_files_and_anew_after_a_rewind(tmp_path: Path) -> None:
    reader = Reader(environ={})
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"command": "a", "id": "x"}\n')
    for _ in range(2):
        assert isinstance(next(reader.file(tmp_path / "a.jsonl")), NumberedJob)
        assert isinstance(next(reader.file(tmp_path / "b.jsonl")), Invalid)
        reader.rewind()


def test_a_number_that_is_an_id_collides_with_a_job_without_one(lines: Path) -> None:
    assert problems(read(lines, '{"command": "a", "id": "2"}\n{"command": "a"}\n'), lines) == [
        '2:1: id: "2" is the id of a job before this one'
    ]


# ---- digests ----


def digest(entry: Mapping[str, Any], path: Path, base: Draft = NOTHING) -> bytes:
    (job,) = good(read(path, json.dumps(entry), base))
    assert len(job.digest) == WIDTH
    return job.digest


def test_a_digest_is_of_all_that_a_job_says(lines: Path, tmp_path: Path) -> None:
    entry: dict[str, Any] = {"command": ["a", "b"], "id": "x", "environment": {"A": "1", "B": "2"}}
    same = digest(entry, lines)
    assert digest({"environment": ["B=2", "A=1"], "command": "a b", "id": "x"}, lines) == same
    changed = (
        {"id": "y"}, {"command": ["a b"]}, {"command": ["ab", ""]}, {"stdin": ""}, {"stdin": "x"}, {"files": {"x": "y"}},
        {"files": {"xy": ""}}, {"collect": ["x"]}, {"mem_limit": 1 << 20}, {"environment": {"A": "1"}}, {"cap_add": ["CHOWN"]},
    )  # fmt: skip
    digests = [digest(entry | change, lines) for change in changed]
    digests.append(digest(entry, lines, Draft(fields={"timeout": 1.0})))
    assert len({same, *digests}) == len(changed) + 2


def test_a_file_that_changed_changes_the_digest(lines: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("1")
    entry = {"command": "a", "stdin": {"file": "data"}}
    first = digest(entry, lines)
    assert digest(entry, lines) == first
    os.utime(data, ns=(1, 1))
    assert digest(entry, lines) != first


@given(st.dictionaries(st.binary(min_size=WIDTH, max_size=WIDTH), st.integers(1, 255)), st.binary(min_size=WIDTH, max_size=WIDTH))
def test_digests_are_a_dict(items: dict[bytes, int], other: bytes) -> None:
    found = Digests()
    for key, value in items.items():
        assert found.put(key, value)
        assert not found.put(key, value)
    assert len(found) == len(items)
    assert all(found.get(key) == value for key, value in items.items())
    assert found.get(other) == items.get(other, 0)


def test_digests_grow() -> None:
    found = Digests()
    keys = [number.to_bytes(WIDTH, "little") for number in range(1500)]  # all in a row, and all of the same low bytes
    keys += [number.to_bytes(WIDTH, "big") for number in range(1, 700)]
    assert all(found.put(key, 1 + index % 255) for index, key in enumerate(keys))
    assert all(found.get(key) == 1 + index % 255 for index, key in enumerate(keys))


# ---- JSON as configuration ----

VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_text(item) for item in value]
    return value if isinstance(value, str) or value is None else json.dumps(value)


@given(VALUES, st.booleans())
def test_places_are_those_of_the_values(value: Any, ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii)
    node = locate(text, 1)
    assert node.plain() == as_text(value)
    if isinstance(value, dict | list):
        assert parse_line(text, 1, lambda mark, problem: None) == as_text(value)
        for key in value if isinstance(value, dict) else ():
            mark, depth = node.find((key,))
            assert depth == 1
            assert json.JSONDecoder().raw_decode(text, mark.column - 1)[0] == key


@given(st.text())
def test_any_line_is_read_or_refused(text: str) -> None:
    with suppress(TextError):
        parse_line(text, 7, lambda mark, problem: None)


def test_keys_given_twice_are_reported() -> None:
    found: list[tuple[Mark, str]] = []
    parse_line('{"a": {"b": 1,  "b": 2}, "a": 1}', 1, lambda mark, problem: found.append((mark, problem)))
    assert [mark.column for mark, _ in found] == [17, 26]


# ---- templates ----


@pytest.mark.parametrize(
    "template, argument, command",
    [
        ("echo", "a b", ("echo", "a b")),
        ("cc -c {} -o {.}.o", "src/a.b.c", ("cc", "-c", "src/a.b.c", "-o", "src/a.b.o")),
        ("x {/} {//} {/.} {#}", "src/a.b.c", ("x", "a.b.c", "src", "a.b", "7")),
        ("x {/} {//} {.}", "plain", ("x", "plain", ".", "plain")),
        ("x {/} {//} {.}", "/etc", ("x", "etc", "/", "/etc")),
        ("x {.} {/.}", "d.d/.profile", ("x", "d.d/.profile", ".profile")),
        ("x {.}", "d.d/file", ("x", "d.d/file")),
        ("sh -c 'echo \"{}\" {x} {{}}'", "$(id)", ("sh", "-c", 'echo "$(id)" {x} {$(id)}')),
        ("{}", "{#} {.}", ("{#} {.}",)),
        ("a'b c'{}d", "", ("ab cd",)),
    ],
)
def test_templates(template: str, argument: str, command: tuple[str, ...]) -> None:
    assert Template(template).command(argument, 7) == command


@pytest.mark.parametrize("text", ["", "  ", "echo 'x"])
def test_bad_templates(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a command|not finished"):
        Template(text)


def test_arguments_are_jobs() -> None:
    reader = Reader(Draft(fields={"mem_limit": 5}, files={"a": b""}), environ={})
    template = Template("echo {}")
    found = [next(reader.argument(template, text, Path("-"), n)) for n, text in enumerate(("x", "a\0b", "\udcff"), 1)]
    first, bad, last = found
    assert isinstance(first, NumberedJob)
    assert (first.spec.mem_limit, first.files, first.index) == (5, {"a": b""}, 1)
    assert isinstance(bad, Invalid)
    assert str(bad.problems[0]) == "-:2:1: must not contain NUL"
    assert isinstance(last, NumberedJob)
    assert (last.spec.command, last.index) == (("echo", "\udcff"), 3)


def test_a_job_in_words() -> None:
    job = NumberedJob(spec=Spec(command=("echo", "a\x1b[2J b")), id="7", index=7)
    assert describe(job) == "7 (echo 'a\\x1b[2J b')"
    assert describe(NumberedJob(spec=Spec(command=("x",)), id="name", index=7)) == "name"
    assert len(describe(NumberedJob(spec=Spec(command=("x" * 500,)), id="7#2", index=7))) < 70


def test_a_draft_that_makes_no_spec() -> None:
    with pytest.raises(SpecError):
        list(Reader(Draft(fields={"cpus": 0}), environ={}).argument(Template("x"), "y", Path("-"), 1))
