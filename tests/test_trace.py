"""Events as JSON and as text, filters, the summary."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tinyvisor.runtime.syscall_numbers import NUMBERS
from tinyvisor.trace import (
    CLASSES,
    Counted,
    End,
    Event,
    Signal,
    Summary,
    Syscall,
    Unfinished,
    format_line,
    from_json,
    parse_calls,
    to_json,
)

KNOWN = NUMBERS["x86_64"]
OPENED = Syscall(
    time=10.5, pid=2, tid=3, name="openat", args=("AT_FDCWD", '"/x"', "O_RDONLY"), raw=(1, 2, 0), result=-1, errno="ENOENT",
    duration=0.25, paths=("/x\udcff",), address="",
)  # fmt: skip


@pytest.mark.parametrize(
    "event",
    [
        OPENED,
        Syscall(time=1, pid=1, tid=1, name="exit_group", args=("0",), raw=(0,)),
        Syscall(time=1, pid=1, tid=1, name="read", args=("3", '"x"', "7"), raw=(3, 4, 7), result=1, resumed=1),
        Unfinished(time=1, pid=1, tid=2, name="read", args=("3",)),
        Counted(name="read", calls=7, errors=2, seconds=0.5),
        Signal(time=1, pid=1, tid=1, signal=17, code="CLD_EXITED", sender=7),
        End(time=1, pid=1, tid=1, exit_code=0),
        End(time=1, pid=1, tid=1, signal=11, core=True),
    ],
)
def test_json_there_and_back(event: Event) -> None:
    line = to_json(event)
    assert "\n" not in line
    assert line.isascii()
    assert from_json(line) == event
    assert json.dumps(json.loads(line)) == line


def test_json_has_the_documented_fields() -> None:
    found = json.loads(to_json(OPENED))
    assert found["event"] == "syscall"
    assert {"time", "pid", "tid", "name", "args", "result", "errno", "duration"} <= found.keys()


@pytest.mark.parametrize(
    "line, problem",
    [
        ("[]", "expected an object"),
        ("{}", 'expected "event"'),
        ('{"event": "syscall"}', "missing 4 required"),
        ('{"event": "exit", "time": 1, "pid": 1, "tid": 1, "x": 1}', "unexpected keyword argument 'x'"),
        ('{"event": "syscall", "time": 1, "pid": 1, "tid": 1, "name": "x", "raw": ["1"]}', "numbers as raw"),
        ("nonsense", "Expecting value"),
        ('{"event": ["syscall"]}', 'expected "event"'),
    ],
)
def test_lines_that_are_none(line: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        from_json(line)


def test_lines_of_calls_that_others_come_in_the_way_of() -> None:
    """As strace has them."""
    read: dict[str, Any] = {"time": 1, "pid": 1, "tid": 2, "name": "read"}
    assert format_line(Unfinished(**read, args=("3",))) == "[pid 1/2] read(3, <unfinished ...>"
    assert format_line(Unfinished(**read | {"name": "pause"})) == "[pid 1/2] pause(<unfinished ...>"
    resumed = Syscall(**read, args=("3", '"x"', "7"), raw=(3, 4, 7), result=1, resumed=1)
    assert format_line(resumed) == '[pid 1/2] <... read resumed>"x", 7) = 1'
    gone = Syscall(**read | {"name": "pause"}, resumed=0)
    assert gone.describe() == "<... pause resumed>) = ?"


def test_counts_add_up_with_events() -> None:
    summary = Summary()
    for event in (
        Counted(name="openat", calls=3, errors=1, seconds=0.5),
        OPENED,
        Counted(name="read", calls=1, errors=0, seconds=1),
    ):
        summary.add(event)
    assert summary.to_json() == {
        "openat": {"calls": 4, "errors": 2, "seconds": 0.75}, "read": {"calls": 1, "errors": 0, "seconds": 1.0}
    }  # fmt: skip


def test_lines_for_people() -> None:
    assert format_line(OPENED) == '[pid 2/3] openat(AT_FDCWD, "/x", O_RDONLY) = -1 ENOENT'
    timed = format_line(OPENED, durations=True, timestamps=True, start=10)
    assert timed == '0.500000 [pid 2/3] openat(AT_FDCWD, "/x", O_RDONLY) = -1 ENOENT <0.250000>'
    ended = Syscall(time=1, pid=1, tid=1, name="exit_group", args=("0",))
    assert format_line(ended, durations=True) == "[pid 1] exit_group(0) = ?"
    assert Syscall(time=1, pid=1, tid=1, name="brk", args=("NULL",), result=4096).describe() == "brk(NULL) = 0x1000"
    waited = Syscall(time=1, pid=1, tid=1, name="pause", result=-1, errno="ERESTARTNOHAND")
    assert waited.describe() == "pause() = ? ERESTARTNOHAND"
    assert (
        Signal(time=1, pid=1, tid=1, signal=15, code="SI_USER", sender=4).describe()
        == "--- SIGTERM {si_code=SI_USER, si_pid=4} ---"
    )
    assert Signal(time=1, pid=1, tid=1, signal=19, stopped=True).describe() == "--- stopped by SIGSTOP ---"
    assert End(time=1, pid=1, tid=1, signal=11, core=True).describe() == "+++ killed by SIGSEGV (core dumped) +++"


@pytest.mark.parametrize(
    "text, inside, outside",
    [
        ("all", "read openat", ""),
        ("none", "", "read openat"),
        ("!all", "", "read openat"),
        ("trace=read", "read", "openat"),
        ("%file,read", "read openat execve", "write"),
        ("!%file", "read write", "openat execve"),
        ("%net", "socket connect", "openat"),
        ("/^epoll_", "epoll_wait epoll_ctl", "poll"),
        ("?nosuch,read", "read", "openat"),
        ("%process,%signal,%memory,%desc,%ipc,%creds,%clock,%stat", "clone kill mmap read semget getuid fstat", "socket"),
    ],
)
def test_filters(text: str, inside: str, outside: str) -> None:
    calls = parse_calls(text, KNOWN)
    assert all(name in calls for name in inside.split())
    assert not any(name in calls for name in outside.split())
    assert set(calls.among(KNOWN)) == {name for name in KNOWN if name in calls}


@pytest.mark.parametrize(
    "text, problem",
    [("opennat", 'did you mean "openat"'),
     ("%nope", "is no class"), ("/(", "no regular expression"), ("", '"" is no system call'), ("a,,b", '"a" is no')],
)  # fmt: skip
def test_filters_that_name_nothing(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_calls(text, KNOWN)


def test_classes_name_calls() -> None:
    for name, calls in CLASSES.items():
        assert calls <= KNOWN.keys(), (name, calls - KNOWN.keys())


def test_summary() -> None:
    summary = Summary()
    for event in (OPENED, OPENED, Syscall(time=1, pid=1, tid=1, name="read", result=0, duration=0.5), End(time=1, pid=1, tid=1)):
        summary.add(event)
    assert summary.to_json() == {
        "openat": {"calls": 2, "errors": 2, "seconds": 0.5},
        "read": {"calls": 1, "errors": 0, "seconds": 0.5},
    }
    lines = summary.table().splitlines()
    assert lines[0].split() == ["%", "time", "seconds", "usecs/call", "calls", "errors", "syscall"]
    assert lines[2].split() == ["50.00", "0.500000", "250000", "2", "2", "openat"]
    assert lines[3].split() == ["50.00", "0.500000", "500000", "1", "read"]
    assert lines[-1].split() == ["100.00", "1.000000", "333333", "3", "2", "total"]
    assert Summary().table().splitlines()[-1].split() == ["0.00", "0.000000", "0", "0", "total"]
