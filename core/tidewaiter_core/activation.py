"""Listening Unix sockets: inherited from systemd by name, or bound here when the program runs stand-alone.

The device never accepts a connection from a network: an inherited socket that is not AF_UNIX is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
from pathlib import Path
from typing import Final

from tidewaiter_core.errors import ConfigError, SecondInstanceError

_FIRST_FD: Final = 3
_PROBE_S: Final = 1.0
_UNIX_PATH_LIMIT_BYTES: Final = 107


def listen_fds() -> dict[str, socket.socket]:
    """The sockets that systemd passed to this very process, by their FileDescriptorName.

    The variables are removed, so that neither a child nor a second call takes the same descriptors.

    Raises:
        ConfigError: A descriptor is no listening Unix stream socket, or two have one name.
    """
    pid = os.environ.pop("LISTEN_PID", None)
    count = os.environ.pop("LISTEN_FDS", "0")
    names = os.environ.pop("LISTEN_FDNAMES", "")
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    # systemd escapes nothing in the list but forbids ":" in a name.
    labels = names.split(":") if names else []
    sockets: dict[str, socket.socket] = {}
    for index in range(int(count)):
        name = labels[index] if index < len(labels) else "unknown"
        if name in sockets:
            raise ConfigError(
                f"socket activation: two descriptors are named {name!r}; set FileDescriptorName="
            )
        sockets[name] = _adopt(_FIRST_FD + index, name)
    return sockets


def _adopt(fd: int, name: str) -> socket.socket:
    try:
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        adopted = socket.socket(fileno=fd)
        family = adopted.family
        listening = adopted.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as err:
        raise ConfigError(
            f"socket activation: descriptor {fd} ({name!r}) is no socket: {err.strerror}"
        ) from err
    if family != socket.AF_UNIX or not listening:
        raise ConfigError(
            f"socket activation: descriptor {fd} ({name!r}) is not a listening Unix socket; this device accepts "
            "no network connection"
        )
    adopted.setblocking(True)
    return adopted


def listener(
    name: str,
    path: Path,
    *,
    mode: int = 0o660,
    group: str | None = None,
    inherited: dict[str, socket.socket] | None = None,
) -> socket.socket:
    """The listening socket called `name`: the inherited one, else one bound to `path`.

    Args:
        inherited: The answer of `listen_fds()`, which a process may ask only once; a process with one listener
            leaves it out.

    Raises:
        SecondInstanceError: Somebody answers at `path`.
        ConfigError: The path cannot be bound.
    """
    passed = listen_fds() if inherited is None else inherited
    if name in passed:
        return passed[name]
    if len(os.fsencode(path)) > _UNIX_PATH_LIMIT_BYTES:
        raise ConfigError(
            f"{path}: a socket path has at most {_UNIX_PATH_LIMIT_BYTES} bytes; choose a shorter run_dir"
        )
    try:
        return _bind(path, mode=mode, gid=-1 if group is None else _group_id(group))
    except OSError as err:
        raise ConfigError(f"{path}: the socket {name!r} cannot be bound ({err.strerror or err})") from err


def _bind(path: Path, *, mode: int, gid: int) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two starting processes must not both find the stale socket and remove each other's fresh one.
    guard = os.open(
        path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        _remove_stale(path)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # Nobody can connect before listen(), so mode and group are right from the first connection on.
            server.bind(os.fspath(path))
            path.chmod(mode)
            if gid != -1:
                os.chown(path, -1, gid)
            server.listen(16)
        except BaseException:
            server.close()
            raise
        return server
    finally:
        os.close(guard)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody answers on; anything else at `path` is not ours to remove."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "something that is not a socket has this name")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
        except (TimeoutError, BlockingIOError):
            pass  # A full accept queue: somebody is there, only slow.
    raise SecondInstanceError(f"{path}: another process answers on this socket; this second instance ends")


def _group_id(group: str) -> int:
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as err:
        raise ConfigError(
            f"group {group!r}: does not exist; the sysusers.d file of tidewaiter creates it"
        ) from err
