"""Who is at the other end of a Unix socket, as the kernel says, and the rules that decide what it may call.

The socket's mode is the first gate; this is the second, so that one wrong chmod opens nothing.
"""

from __future__ import annotations

import grp
import pwd
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from tidewaiter_core.errors import ConfigError
from tidewaiter_core.varlink.errors import PERMISSION_DENIED, VarlinkError

_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_GROUPS_BYTES = 1024  # the most that socket.getsockopt reads: 256 groups
_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Peer:
    """Credentials at the time of connect()."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]
    """All groups, `gid` included."""

    def __str__(self) -> str:
        return f"pid {self.pid} uid {self.uid}"


Authorize = Callable[[Peer, str], None]
"""Called with the peer and the full method name before each call; raises VarlinkError to refuse."""


def peer_of(connection: socket.socket) -> Peer:
    """Credentials of the process that connected. With more groups than can be read, only the primary one
    counts.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        raw = b""
    groups = struct.unpack(f"{len(raw) // 4}I", raw[: len(raw) // 4 * 4])
    return Peer(pid=pid, uid=uid, gid=gid, groups=frozenset(groups) | {gid})


def user_id(name_or_number: str) -> int:
    """The uid of a user name or of a decimal number; ConfigError if there is no such user."""
    if name_or_number.isascii() and name_or_number.isdigit():
        return int(name_or_number)
    try:
        return pwd.getpwnam(name_or_number).pw_uid
    except KeyError as err:
        raise ConfigError(
            f"user {name_or_number!r}: not in the user database; sysusers.d must create it first"
        ) from err


def group_id(name_or_number: str) -> int:
    """The gid of a group name or of a decimal number; ConfigError if there is no such group."""
    if name_or_number.isascii() and name_or_number.isdigit():
        return int(name_or_number)
    try:
        return grp.getgrnam(name_or_number).gr_gid
    except KeyError as err:
        raise ConfigError(
            f"group {name_or_number!r}: not in the group database; sysusers.d must create it first"
        ) from err


def allow_users(*names: str) -> Authorize:
    """Only these users (names or numbers). Root is no exception: it must be named."""
    uids = frozenset(user_id(name) for name in names)

    def authorize(peer: Peer, method: str) -> None:
        if peer.uid not in uids:
            raise VarlinkError(PERMISSION_DENIED)

    return authorize


def allow_group(*names: str) -> Authorize:
    """Only members of one of these groups (names or numbers)."""
    gids = frozenset(group_id(name) for name in names)

    def authorize(peer: Peer, method: str) -> None:
        if not gids & peer.groups:
            raise VarlinkError(PERMISSION_DENIED)

    return authorize


def allow_any(*rules: Authorize) -> Authorize:
    """Whoever satisfies one of `rules`; the refusal is the last rule's."""

    def authorize(peer: Peer, method: str) -> None:
        refusal: VarlinkError | None = None
        for rule in rules:
            try:
                rule(peer, method)
                return
            except VarlinkError as err:
                refusal = err
        raise refusal or VarlinkError(PERMISSION_DENIED)

    return authorize
