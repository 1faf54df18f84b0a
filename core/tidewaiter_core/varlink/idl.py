"""Varlink interface files: the types they are made of, and whether a JSON value has the shape a type asks
for.

Grammar: https://varlink.org/Interface-Definition. The parser is in `idl_parse`. A name stands for one member
    only, also across
kinds: systemd's varlinkctl and the Python package keep types, methods and errors in one namespace.
Pure: the files are read by `catalog`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

INT_MIN, INT_MAX = -(2**63), 2**63 - 1


class Primitive(StrEnum):
    """The types that need no further description."""

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    STRING = "string"
    OBJECT = "object"


@dataclass(frozen=True, slots=True)
class ArrayType:
    """`[]item`"""

    item: IdlType


@dataclass(frozen=True, slots=True)
class MapType:
    """`[string]item`"""

    item: IdlType


@dataclass(frozen=True, slots=True)
class OptionalType:
    """`?item`: the value may be null or absent."""

    item: IdlType


@dataclass(frozen=True, slots=True)
class EnumType:
    """`(a, b, c)`"""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StructType:
    """`(name: type, ...)`"""

    fields: Mapping[str, IdlType]


@dataclass(frozen=True, slots=True)
class NamedType:
    """A type declared with `type Name ...` in the same interface."""

    name: str


IdlType = Primitive | ArrayType | MapType | OptionalType | EnumType | StructType | NamedType


@dataclass(frozen=True, slots=True)
class Method:
    """`method Name(parameters) -> (reply)`"""

    name: str
    parameters: StructType
    reply: StructType


@dataclass(frozen=True, slots=True)
class Interface:
    """One parsed interface file."""

    name: str
    description: str
    """The file's text, as GetInterfaceDescription returns it."""
    types: Mapping[str, StructType | EnumType]
    methods: Mapping[str, Method]
    errors: Mapping[str, StructType]


class Direction(StrEnum):
    """Who wrote the value decides what is done about fields the type does not have, and about absent ones."""

    REQUEST = "request"
    """From a peer: an unknown field is refused (it would be silently ignored otherwise); absent optional
    fields become None.
    """
    REPLY = "reply"
    """From our own code: an unknown field is a bug; None is left out."""
    ANSWER = "answer"
    """From a service that may be newer: an unknown field is dropped; absent optional fields become None."""


class ShapeError(ValueError):
    """A value does not have the shape of its type."""

    def __init__(self, where: str, finding: str) -> None:
        super().__init__(f"{where or 'parameters'}: {finding}")
        self.where = where


def shape(interface: Interface, kind: IdlType, value: Any, direction: Direction, where: str = "") -> Any:
    """`value` as `kind` wants it, a copy; see `Direction` for what is added or left out.

    Raises:
        ShapeError: It does not fit; names the field.
    """
    match kind:
        case Primitive():
            return _primitive(kind, value, where)
        case NamedType(name):
            return shape(interface, interface.types[name], value, direction, where)
        case OptionalType(item):
            return None if value is None else shape(interface, item, value, direction, where)
        case ArrayType(item):
            if not isinstance(value, list | tuple):
                raise ShapeError(where, f"expected an array, found {_name_of(value)}")
            return [
                shape(interface, item, entry, direction, f"{where}[{i}]") for i, entry in enumerate(value)
            ]
        case MapType(item):
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise ShapeError(where, f"expected a map with text keys, found {_name_of(value)}")
            return {
                key: shape(interface, item, entry, direction, f"{where}[{key[:40]}]")
                for key, entry in value.items()
            }
        case EnumType(values):
            if not isinstance(value, str) or value not in values:
                raise ShapeError(where, f"expected one of {', '.join(values)}, found {_name_of(value)}")
            return str(value)
        case StructType(fields):
            return _struct(interface, fields, value, direction, where)


def _struct(
    interface: Interface, fields: Mapping[str, IdlType], value: Any, direction: Direction, where: str
) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ShapeError(where, f"expected an object, found {_name_of(value)}")
    prefix = f"{where}." if where else ""
    if direction is not Direction.ANSWER:
        for key in value:
            if key not in fields:
                raise ShapeError(f"{prefix}{str(key)[:64]}", "the interface has no such field")
    result: dict[str, Any] = {}
    for name, kind in fields.items():
        entry = value.get(name)
        if entry is None:
            if not isinstance(kind, OptionalType):
                raise ShapeError(f"{prefix}{name}", "missing")
            if direction is not Direction.REPLY:
                result[name] = None
            continue
        result[name] = shape(interface, kind, entry, direction, f"{prefix}{name}")
    return result


def _primitive(kind: Primitive, value: Any, where: str) -> Any:
    match kind:
        case Primitive.BOOL:
            if isinstance(value, bool):
                return value
        case Primitive.INT:
            if isinstance(value, int) and not isinstance(value, bool):
                if INT_MIN <= value <= INT_MAX:
                    return int(value)
                raise ShapeError(where, "an integer beyond 64 bit")
        case Primitive.FLOAT:
            if isinstance(value, int | float) and not isinstance(value, bool):
                # an int beyond the range of a float raises OverflowError in isfinite
                if isinstance(value, int) and abs(value) > INT_MAX:
                    raise ShapeError(where, "a number beyond 64 bit")
                if math.isfinite(value):
                    return float(value)
                raise ShapeError(where, "a number that is not finite")
        case Primitive.STRING:
            if isinstance(value, str):
                return str(value)
        case Primitive.OBJECT:
            if isinstance(value, Mapping):
                return dict(value)
    raise ShapeError(where, f"expected {kind.value}, found {_name_of(value)}")


def _name_of(value: Any) -> str:
    """What a value is, in JSON's words; short texts are quoted."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float"
        case str():
            return repr(value) if len(value) <= 40 else f"a text of {len(value)} characters"
        case Mapping():
            return "an object"
        case list() | tuple():
            return "an array"
    return f"a Python {type(value).__name__}"
