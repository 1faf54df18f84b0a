"""From a method name to a checked handler, and from its result to a checked reply. No socket here.

Input that does not fit the interface file is the peer's mistake (InvalidParameter). Output that does not fit
is ours: ShapeError leaves here and ends the process like any other bug.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tidewaiter_core
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.varlink import errors
from tidewaiter_core.varlink.call import Call, Handler
from tidewaiter_core.varlink.catalog import SERVICE_NAME, load_interface
from tidewaiter_core.varlink.errors import VarlinkError
from tidewaiter_core.varlink.idl import Direction, Interface, Method, ShapeError, shape
from tidewaiter_core.varlink.peer import Authorize, Peer

_OF_ANY_SERVICE = (errors.FAILED, errors.INTERNAL_ERROR)


@dataclass(frozen=True, slots=True)
class Bound:
    """A method of an interface and the handler that answers it."""

    interface: Interface
    method: Method
    handler: Handler

    @property
    def full_name(self) -> str:
        return f"{self.interface.name}.{self.method.name}"

    def reply(self, value: Mapping[str, Any] | None) -> dict[str, Any]:
        """`value` as reply parameters; ShapeError is a bug of the handler."""
        checked = shape(
            self.interface, self.method.reply, value or {}, Direction.REPLY, f"{self.full_name} reply"
        )
        assert isinstance(checked, dict)  # noqa: S101 - a StructType gives a dict
        return checked


class Dispatcher:
    """All interfaces of one socket, org.varlink.service included."""

    def __init__(
        self, interfaces: Mapping[str, Mapping[str, Handler]], *, authorize: Authorize, product: str
    ) -> None:
        """Refuses (ValueError) handlers for methods that their interface file does not have."""
        self._authorize = authorize
        self._product = product
        own: Mapping[str, Handler] = {"GetInfo": self._info, "GetInterfaceDescription": self._description}
        self._handlers: dict[str, Mapping[str, Handler]] = {SERVICE_NAME: own, **interfaces}
        self._interfaces = {name: load_interface(name) for name in self._handlers}
        for name, handlers in interfaces.items():
            for method in handlers.keys() - self._interfaces[name].methods.keys():
                raise ValueError(f"{name}.varlink has no method {method}, but a handler is given for it")

    def resolve(self, full_name: str) -> Bound:
        """The method `interface.Method`; VarlinkError if it is unknown or has no handler on this socket."""
        interface_name, _, method_name = full_name.rpartition(".")
        interface = self._interfaces.get(interface_name)
        if interface is None:
            raise VarlinkError(errors.INTERFACE_NOT_FOUND, {"interface": interface_name})
        method = interface.methods.get(method_name)
        if method is None:
            raise VarlinkError(errors.METHOD_NOT_FOUND, {"method": full_name})
        handler = self._handlers[interface_name].get(method_name)
        if handler is None:
            raise VarlinkError(errors.METHOD_NOT_IMPLEMENTED, {"method": full_name})
        return Bound(interface, method, handler)

    def accept(self, bound: Bound, parameters: Any, peer: Peer) -> dict[str, Any]:
        """Authorize first (who may not call learns nothing about parameters), then check the parameters."""
        if bound.interface.name != SERVICE_NAME:
            self._authorize(peer, bound.full_name)
        try:
            checked = shape(bound.interface, bound.method.parameters, parameters, Direction.REQUEST)
        except ShapeError as err:
            raise VarlinkError(errors.INVALID_PARAMETER, {"parameter": err.where}) from err
        assert isinstance(checked, dict)  # noqa: S101 - a StructType gives a dict
        return checked

    def error(self, err: TidewaiterError) -> dict[str, Any]:
        """The error reply for `err`; ShapeError or ValueError if a handler raised one that no interface
        declares.
        """
        if not isinstance(err, VarlinkError):
            parameters = {"code": err.code, "message": str(err)[:4096], "retryable": err.retryable}
            return {"error": errors.FAILED, "parameters": parameters}
        if err.name in _OF_ANY_SERVICE:
            return {"error": err.name, "parameters": err.parameters}
        interface_name, _, short = err.name.rpartition(".")
        interface = self._interfaces.get(interface_name)
        if interface is None or short not in interface.errors:
            raise ValueError(f"{err.name}: raised by a handler, but no interface of this socket declares it")
        checked = shape(interface, interface.errors[short], err.parameters, Direction.REPLY, err.name)
        return {"error": err.name, "parameters": checked}

    def _info(self, call: Call) -> dict[str, Any]:
        return {
            "vendor": "tidewaiter",
            "product": self._product,
            "version": tidewaiter_core.__version__,
            "url": "",
            "interfaces": sorted(self._interfaces),
        }

    def _description(self, call: Call) -> dict[str, Any]:
        name = call.parameters["interface"]
        interface = self._interfaces.get(name)
        if interface is None:
            raise VarlinkError(errors.INTERFACE_NOT_FOUND, {"interface": name})
        return {"description": interface.description}
