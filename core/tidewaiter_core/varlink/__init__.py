"""Varlink on Unix sockets: what tidewaiter's processes speak with each other (architecture.md section 6).

`framing`, `idl` and `idl_parse` are pure; `dispatch` knows no socket; `connection`, `server` and `client`
are thin around them.
"""

from tidewaiter_core.varlink.call import Call, Handler, Upgrade
from tidewaiter_core.varlink.catalog import interface_names, load_interface
from tidewaiter_core.varlink.client import Client, RawReader
from tidewaiter_core.varlink.errors import BadInterfaceError, NotReachable, ProtocolError, VarlinkError
from tidewaiter_core.varlink.idl import Interface
from tidewaiter_core.varlink.peer import (
    Authorize,
    Peer,
    allow_any,
    allow_group,
    allow_users,
    group_id,
    peer_of,
    user_id,
)
from tidewaiter_core.varlink.server import Server

__all__ = [
    "Authorize",
    "BadInterfaceError",
    "Call",
    "Client",
    "Handler",
    "Interface",
    "NotReachable",
    "Peer",
    "ProtocolError",
    "RawReader",
    "Server",
    "Upgrade",
    "VarlinkError",
    "allow_any",
    "allow_group",
    "allow_users",
    "group_id",
    "interface_names",
    "load_interface",
    "peer_of",
    "user_id",
]
