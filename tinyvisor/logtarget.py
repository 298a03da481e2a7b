"""Where a service's output goes: a file, syslog, the journal, nowhere. Synchronous: nothing here ever waits.

What a socket does not take now is kept, up to a bound, and offered again by `flush`; beyond the bound it is counted and thrown
away, which is told in the target itself once it takes something again. So a syslog that is slow, or dead, or restarts, holds up
nobody, and what it misses is known.

Sources: RFC 3164 and RFC 5424; systemd docs JOURNAL_NATIVE_PROTOCOL.md; moby daemon/logger/{syslog,journald} for the fields.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from tinyvisor.errors import HostError
from tinyvisor.runtime.logfile import Block, LogFile, Lost, Stream, as_cri, as_json, as_raw, notice, timestamp
from tinyvisor.runtime.stage import Place
from tinyvisor.spec import SYSLOG_FACILITIES, Logging, parse_syslog_address
from tinyvisor.units import format_size

JOURNAL: Final = "/run/systemd/journal/socket"

MAX_WAITING: Final = 256 << 10
"""Bytes that wait for a socket."""

MAX_MESSAGE: Final = 8 << 10
"""Bytes of text in a message to syslog; rsyslog's own bound. A longer line is cut into several."""

LINEWISE: Final = 4 << 10
"""Bytes handed on at once to who looks at every line: it bounds how long a flood, of newlines at worst, keeps others waiting."""

RETRY: Final = 1.0
"""Seconds after which an address that nobody listens at is tried again."""

_SEVERITY: Final = {"stdout": 6, "stderr": 3}


class Log(Protocol):
    """Takes a service's output."""

    @property
    def waits(self) -> bool:
        """Whether some of it may wait for `flush`."""
        ...

    @property
    def most(self) -> int:
        """Bytes that are better written at once at most."""
        ...

    def write(self, stream: Stream, block: Block) -> Lost | None:
        """Takes a block. Returns what was lost before, once it is told there."""
        ...

    def lose(self, lost: Lost) -> None:
        """Counts what was thrown away before it came here."""
        ...

    def place(self) -> Place:
        """Where it ends, for `take_back`; zeros where it is no file."""
        ...

    def take_back(self, place: Place) -> None:
        """As `LogFile.take_back`; nothing where it is no file."""
        ...

    def flush(self) -> bool:
        """Tries again; whether something still waits for somebody who is there."""
        ...

    def close(self) -> Lost | None:
        """Returns what was lost and not yet told."""
        ...


def open_log(logging: Logging, name: str, directory: Path | None) -> Log | None:
    """The log of the instance `name`; None where there is none.

    Args:
        directory: of the files; None: no files are kept.

    Raises:
        HostError: a file can't be written.
    """
    match logging.driver:
        case "none":
            return None
        case "syslog":
            log: Log = SocketLog(_syslog_messages(logging, name), parse_syslog_address(logging.syslog_address))
        case "journald":
            log = SocketLog(_journal_messages(logging, name), JOURNAL)
        case _:
            if directory is None:
                return None
            log = _File(_open_file(logging, directory / f"{name}.log"))
    return log if logging.max_rate is None else Limited(log, logging.max_rate)


def _open_file(logging: Logging, path: Path) -> LogFile:
    encode = {"json-file": as_json, "raw": as_raw}.get(logging.driver, as_cri)
    try:
        return LogFile(
            path,
            max_size=logging.max_size,
            max_files=logging.max_files,
            max_age=logging.max_age,
            compress=logging.compress,
            encode=encode,
        )
    except OSError as error:
        problem = f"a log file at {path} ({error.strerror or error})"
        raise HostError(problem, "make the directory writable or choose another") from error


class _File:
    """A `LogFile`, with which nothing waits."""

    waits: Final = False

    def __init__(self, file: LogFile) -> None:
        self.most = file.most
        self.write = file.write
        self.lose = file.lose
        self.close = file.close
        self.place = file.place
        self.take_back = file.take_back

    def flush(self) -> bool:
        return False


class Limited:
    """At most `rate` bytes a second go on to `log`, newlines included: what is more is counted, and told once a second at most.

    Args:
        clock: seconds of a monotonic clock.
    """

    def __init__(self, log: Log, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._rate = rate
        self._clock = clock
        self._since = clock()
        self._left = rate
        self._lost: Lost | None = None

    @property
    def waits(self) -> bool:
        return self._log.waits

    @property
    def most(self) -> int:
        return self._log.most

    def write(self, stream: Stream, block: Block) -> Lost | None:
        now = self._clock()
        if now - self._since >= 1:
            self._since, self._left = now, self._rate
            self._tell()
        end = self._fitting(block)
        self._left -= end
        told = self._log.write(stream, block[:end]) if end else None
        if end < len(block):
            self._lost = Lost.of(block[end:], f"more than {format_size(self._rate)} a second").after(self._lost)
        return told

    def _fitting(self, block: Block) -> int:
        """Where its lines end that go on."""
        if self._lost is not None:  # in order: once something is missing, all is till the second is over
            return 0
        if len(block) <= self._left:
            return len(block)
        end = block.rfind(b"\n", 0, max(0, self._left)) + 1
        if not end and self._left == self._rate:  # a line larger than that passes alone
            end = block.find(b"\n") + 1 or len(block)
        return end

    def lose(self, lost: Lost) -> None:
        self._log.lose(lost)

    def place(self) -> Place:
        return self._log.place()

    def take_back(self, place: Place) -> None:
        self._log.take_back(place)

    def flush(self) -> bool:
        return self._log.flush()

    def close(self) -> Lost | None:
        self._tell()
        return self._log.close()

    def _tell(self) -> None:
        if self._lost is not None:
            self._log.lose(self._lost)
            self._lost = None


Messages = Callable[[Stream, bytes, bool], list[bytes]]
"""The datagrams that a line becomes, which comes without its newline; False: it had none."""


class SocketLog:
    """Sends datagrams to a path or to (IP address, port).

    Args:
        clock: seconds of a monotonic clock.
    """

    waits: Final = True
    most: Final = LINEWISE

    def __init__(self, messages: Messages, address: str | tuple[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._messages = messages
        self._address = address
        self._clock = clock
        self._socket: socket.socket | None = None
        self._retry_at = clock()
        self._waiting: deque[tuple[bytes, int]] = deque()  # with the size of the line that is lost with it; 0 for none
        self._size = 0
        self._lost: Lost | None = None
        self._reason = "nobody takes it"

    def write(self, stream: Stream, block: Block) -> Lost | None:
        told = None
        full = block.endswith(b"\n")
        for line in block.removesuffix(b"\n").split(b"\n"):
            if self._lost is not None and not self._waiting:
                told, self._lost = self._lost, None
                self._add(self._messages("stderr", notice(told).removesuffix(b"\n"), True), 0)
            self._add(self._messages(stream, line, full), len(line) + full)
            self.flush()
        return told

    def _add(self, messages: list[bytes], counted: int) -> None:
        """All of a line, or nothing of it."""
        size = sum(map(len, messages))
        if self._waiting and self._size + size > MAX_WAITING:
            self._miss(counted, self._reason)
            return
        self._size += size
        self._waiting += ((message, counted if index == len(messages) else 0) for index, message in enumerate(messages, 1))

    def lose(self, lost: Lost) -> None:
        self._lost = lost.after(self._lost)

    def _miss(self, counted: int, reason: str) -> None:
        if counted:
            self.lose(Lost(1, counted, reason))

    def place(self) -> Place:
        return Place()

    def take_back(self, place: Place) -> None:
        """What was sent is sent."""

    def flush(self) -> bool:
        while self._waiting and self._connect():
            message, counted = self._waiting[0]
            try:
                assert self._socket is not None
                self._socket.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._reason = "it is not taken fast enough"
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    break
                if error.errno != errno.EMSGSIZE:  # who listened has gone
                    self._disconnect(error)
                    break
                self._miss(counted, os.strerror(errno.EMSGSIZE))
            self._waiting.popleft()
            self._size -= len(message)
        return bool(self._waiting) and self._socket is not None

    def close(self) -> Lost | None:
        self.flush()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        for _, counted in self._waiting:
            self._miss(counted, self._reason)
        self._waiting.clear()
        self._size = 0
        lost, self._lost = self._lost, None
        return lost

    def _connect(self) -> bool:
        if self._socket is not None:
            return True
        if self._clock() < self._retry_at:
            return False
        try:
            self._socket = _open_socket(self._address)
        except OSError as error:
            self._disconnect(error)
            return False
        return True

    def _disconnect(self, error: OSError) -> None:
        self._reason = f"{_shown(self._address)}: {os.strerror(error.errno or errno.EIO)}"
        self._retry_at = self._clock() + RETRY
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _open_socket(address: str | tuple[str, int]) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        made.connect(address)
    except BaseException:
        made.close()
        raise
    return made


def _shown(address: str | tuple[str, int]) -> str:
    return address if isinstance(address, str) else f"{address[0]} port {address[1]}"


# ---- formats ----


def _syslog_messages(logging: Logging, name: str) -> Messages:
    local = logging.syslog_address.startswith("unixgram:")
    bsd = (logging.syslog_format or ("rfc3164" if local else "rfc5424")) == "rfc3164"
    facility, tag = SYSLOG_FACILITIES.index(logging.syslog_facility) << 3, (logging.tag or name).encode()
    host = b"" if local else _printable(socket.gethostname(), 255) + b" "
    pid = os.getpid()

    def messages(stream: Stream, line: bytes, full: bool) -> list[bytes]:
        priority = facility | _SEVERITY[stream]
        if bsd:  # the time is local, and the day is padded by a blank
            now = time.localtime()
            head = b"<%d>%s %2d %s %s%s[%d]: " % (
                priority, _MONTHS[now.tm_mon - 1], now.tm_mday, time.strftime("%H:%M:%S", now).encode(), host, tag, pid,
            )  # fmt: skip
        else:
            head = b"<%d>1 %s %s%s %d - - " % (priority, timestamp(time.time_ns()), host or b"- ", tag, pid)
        return [head + line[start : start + MAX_MESSAGE] for start in range(0, max(1, len(line)), MAX_MESSAGE)]

    return messages


_MONTHS: Final = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()  # strftime's depend on the locale


def _journal_messages(logging: Logging, name: str) -> Messages:
    own = f"CONTAINER_NAME={name}\nSYSLOG_IDENTIFIER={logging.tag or name}\nCONTAINER_TAG={logging.tag or name}\n".encode()

    def messages(stream: Stream, line: bytes, full: bool) -> list[bytes]:
        partial = b"" if full else b"CONTAINER_PARTIAL_MESSAGE=true\n"
        head = b"PRIORITY=%d\n" % _SEVERITY[stream]
        # With its length before it: what it says can't become a field of its own.
        return [head + own + partial + b"MESSAGE\n" + struct.pack("<Q", len(line)) + line + b"\n"]

    return messages


def _printable(text: str, most: int) -> bytes:
    return "".join(char for char in text if "!" <= char <= "~")[:most].encode() or b"-"
