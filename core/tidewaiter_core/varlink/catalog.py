"""The interface files that ship with this package, parsed once."""

from __future__ import annotations

from functools import cache
from importlib import resources

from tidewaiter_core.varlink.errors import BadInterfaceError
from tidewaiter_core.varlink.idl import Interface
from tidewaiter_core.varlink.idl_parse import parse_interface

SERVICE_NAME = "org.varlink.service"
_SERVICE_IDL = """# What every Varlink service answers about itself. Source: https://varlink.org/Service
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
error ExpectedUpgrade ()
"""


def interface_names() -> list[str]:
    """Names of all interface files, sorted."""
    folder = resources.files("tidewaiter_core") / "interfaces"
    return sorted(
        entry.name.removesuffix(".varlink") for entry in folder.iterdir() if entry.name.endswith(".varlink")
    )


@cache
def load_interface(name: str) -> Interface:
    """The interface `name`, e.g. io.tidewaiter.Updater.

    Raises:
        BadInterfaceError: No such file, not the interface its name says, or not Varlink.
    """
    if name == SERVICE_NAME:
        return parse_interface(_SERVICE_IDL)
    if name not in interface_names():
        raise BadInterfaceError(
            f"{name}.varlink: no such interface file; known are {', '.join(interface_names())}"
        )
    text = (resources.files("tidewaiter_core") / "interfaces" / f"{name}.varlink").read_text(encoding="utf-8")
    try:
        interface = parse_interface(text)
    except BadInterfaceError as err:
        raise BadInterfaceError(f"{name}.varlink: {err}") from err
    if interface.name != name:
        raise BadInterfaceError(
            f"{name}.varlink: describes {interface.name}; file name and interface must agree"
        )
    return interface
