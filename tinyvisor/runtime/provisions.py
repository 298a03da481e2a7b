"""What the runtime makes for one container: the tmpfs with its secrets, its notify socket, its notification pipe.

All three are made before there is a container, and reach it as fds: a tree that is mounted nowhere, and a pipe. No path of the
container's is looked at, and what it is given it can't change: the trees are read-only to it, and not its own to mount anew.
Written on anyio alone.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import stat
import struct
import threading
from pathlib import Path
from typing import Final

import anyio
import anyio.lowlevel

from tinyvisor.errors import LaunchError, SpecError
from tinyvisor.runtime.identity import Identity
from tinyvisor.runtime.launcher import received_fds
from tinyvisor.runtime.leases import Ids
from tinyvisor.runtime.stdio import ReceivePipe
from tinyvisor.runtime.syscalls import new_tmpfs, unshare
from tinyvisor.runtime.waited import Waited
from tinyvisor.spec import MAX_SECRET, NOTIFY_SOCKET, Secret, Spec

MAX_DATAGRAM: Final = 4096
"""Bytes of a notification; a longer one is cut. systemd's own bound."""

_PAGE: Final = 4096
_ROOM: Final = socket.CMSG_SPACE(253 * struct.calcsize("i"))  # SCM_MAX_FD of them
_LOOK: Final = 0.05  # seconds
_CLONE_FILES: Final = 0x400


class NotifySocket:
    """The supervisor's end of a container's NOTIFY_SOCKET.

    Only the container can send: nobody else has a path to it. So what comes is the container's word, whoever in it says it, and
    no sender's pid is asked for. What waits here is the sender's memory (SO_SNDBUF, net.unix.max_dgram_qlen): who sends faster
    than is read, waits.

    File descriptors that are sent along (FDSTORE=1, BARRIER=1) are closed. Who closes a file's last one may have to wait for as
    long as its maker likes (SO_LINGER), also where the kernel does it because they were not taken in: so threads do, and no more
    is heard from this container until they are done.
    """

    def __init__(self, directory: int) -> None:
        """Bound in a directory, given as an fd."""
        self._use(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC))
        try:
            self._socket.bind(f"/proc/self/fd/{directory}/{os.path.basename(NOTIFY_SOCKET)}")
        except BaseException:
            self.close()
            raise

    @classmethod
    def again(cls, fd: int) -> NotifySocket:
        """One that is bound already, of a container that is taken over."""
        self = cls.__new__(cls)
        self._use(socket.socket(fileno=fd))
        return self

    def _use(self, own: socket.socket) -> None:
        own.setblocking(False)
        self._socket = own
        self._waited = Waited(own, self._socket.close)
        self._closed = False
        self._closing: threading.Thread | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    async def receive(self) -> bytes:
        """The next message, its first `MAX_DATAGRAM` bytes.

        Raises:
            anyio.ClosedResourceError: after `close`.
        Cancellation: nothing was read.
        """
        await anyio.lowlevel.checkpoint()
        while not self._closed:
            if self._is_closing():
                await anyio.sleep(_LOOK)
                continue
            try:
                return self._take()  # nothing in between: should we be killed, it is the next one's to hear
            except BlockingIOError:
                await self._waited.readable()
        raise anyio.ClosedResourceError

    def close(self, *, gone: bool = False) -> None:
        """More than once is as once.

        Args:
            gone: the container is, so that nothing more comes; what is there is nobody's, and must not be left to who closes the
                last copy of the socket.
        """
        if gone and not self._closed:
            with contextlib.suppress(OSError):  # BlockingIOError: it is empty
                while True:
                    self._take()
        self._closed = True
        self._waited.close()

    def _is_closing(self) -> bool:
        return self._closing is not None and self._closing.is_alive()

    def _take(self) -> bytes:
        data, control, _, _ = self._socket.recvmsg(MAX_DATAGRAM, _ROOM, socket.MSG_CMSG_CLOEXEC)
        if fds := received_fds(control):
            self._closing = threading.Thread(target=_close_all, args=(fds,), name="tinyvisor-close", daemon=True)
            self._closing.start()
        return data


def _close_all(fds: list[int]) -> None:
    """Has the last copies of them closed by the exit of a thread that has a table of its own: nobody who exits waits for a
    connection's peer, which may be among them (net/ipv4/af_inet.c, inet_release: PF_EXITING)."""
    copied, closed = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.suppress(OSError):  # a filter around us, such as Docker's: then it is us who may have to wait
            unshare(_CLONE_FILES)
        copied.set()
        closed.wait()

    last = threading.Thread(target=hold, daemon=True)
    last.start()
    copied.wait()
    for fd in fds:
        os.close(fd)
    closed.set()
    last.join()


class Provisions:
    """As `plan.made_fds` wants them.

    Attributes:
        fds: to be sent to the launcher, in order; `close_given` closes them.
        notify, notification: our ends, which `close` closes.
    """

    def __init__(self, spec: Spec, ids: Ids | None, identity: Identity) -> None:
        """
        Raises:
            LaunchError: a secret can't be read, or the kernel has nothing left.
            SpecError: a secret's owner is none of the container's ids.
        """
        self.notify: NotifySocket | None = None
        self.notification: ReceivePipe | None = None
        self.fds: list[int] = []
        try:
            if spec.secrets:
                self.fds.append(_secrets(spec, ids, identity))
            if spec.notify_socket:
                self.fds.append(self._open_notify(ids))
            if spec.notification_fd is not None:
                reading, writing = os.pipe2(os.O_CLOEXEC)
                self.fds.append(writing)
                self.notification = ReceivePipe(reading)
        except BaseException:
            self.close_given()
            self.close()
            raise

    @classmethod
    def again(cls, notify: int, notification: int) -> Provisions:
        """Our ends of a container that is taken over; -1: it has none."""
        self = cls.__new__(cls)
        self.notify = NotifySocket.again(notify) if notify >= 0 else None
        self.notification = ReceivePipe(notification) if notification >= 0 else None
        self.fds = []
        return self

    def _open_notify(self, ids: Ids | None) -> int:
        directory = new_tmpfs(size=_PAGE, inodes=4)
        try:
            self.notify = NotifySocket(directory)
            # Whoever it is inside may send. That is asked of the inode, however the mount is.
            os.chmod(os.path.basename(NOTIFY_SOCKET), 0o666, dir_fd=directory)
            _own(directory, os.path.basename(NOTIFY_SOCKET), *_root(ids))
            os.chown(f"/proc/self/fd/{directory}", *_root(ids))
        except BaseException:
            os.close(directory)
            raise
        return directory

    def close_given(self) -> None:
        while self.fds:
            os.close(self.fds.pop())

    def close(self, *, gone: bool = False) -> None:
        """`gone`: so is the container."""
        if self.notify is not None:
            self.notify.close(gone=gone)
        if self.notification is not None:
            self.notification.close()


def _secrets(spec: Spec, ids: Ids | None, identity: Identity) -> int:
    contents = [(secret, _content(spec, secret)) for secret in spec.secrets]
    size = sum(-(-len(content) // _PAGE) * _PAGE for _, content in contents) + _PAGE
    tree = _unswappable_tmpfs(size, len(contents) + 4)
    try:
        for secret, content in contents:
            _write(tree, secret.target, content)
            uid = identity.uid if secret.uid is None else secret.uid
            gid = identity.gid if secret.gid is None else secret.gid
            _own(tree, secret.target, *((ids.map.uid(uid), ids.map.gid(gid)) if ids else (uid, gid)))
            os.chmod(secret.target, secret.mode, dir_fd=tree)
        os.chown(f"/proc/self/fd/{tree}", *_root(ids))
    except BaseException:
        os.close(tree)
        raise
    return tree


def _content(spec: Spec, secret: Secret) -> bytes:
    if secret.file is None:
        if secret.content is None:
            raise SpecError("secrets", f"what {secret.target} was is not known any more; reload the project")
        return secret.content
    try:
        return _read(secret.file)
    except OSError as exc:
        step, number, text = f"read the secret {secret.target} from {secret.file}", exc.errno or 0, exc.strerror or ""
        raise LaunchError(spec.name, step, number, "" if text == os.strerror(number) else text) from None


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # it might never end
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file")
    with open(fd, "rb", buffering=0) as file:
        content = bytearray()
        while len(content) <= MAX_SECRET and (more := file.read(MAX_SECRET + 1 - len(content))):
            content += more
    if len(content) > MAX_SECRET:
        raise OSError(errno.EFBIG, f"more than {MAX_SECRET} bytes")
    return bytes(content)


def _write(directory: int, name: str, content: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    with open(fd, "wb", buffering=0) as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]


def _own(directory: int, name: str, uid: int, gid: int) -> None:
    os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)


def _root(ids: Ids | None) -> tuple[int, int]:
    return (ids.map.uid(0), ids.map.gid(0)) if ids else (0, 0)


def _unswappable_tmpfs(size: int, inodes: int) -> int:
    if _knows_noswap():
        return new_tmpfs(size=size, inodes=inodes, noswap=True)
    return new_tmpfs(size=size, inodes=inodes)


@functools.cache
def _knows_noswap() -> bool:
    """Linux 6.4; not in a user namespace (EINVAL): swapping is the host's then, as for all memory of ours."""
    with contextlib.suppress(OSError):
        os.close(new_tmpfs(size=_PAGE, inodes=1, noswap=True))
        return True
    return False
