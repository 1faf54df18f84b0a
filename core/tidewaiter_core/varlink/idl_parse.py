"""Parser for Varlink interface files. Pure. Errors name the line, because a person wrote the file."""

from __future__ import annotations

import re

from tidewaiter_core.varlink.errors import BadInterfaceError
from tidewaiter_core.varlink.idl import (
    ArrayType,
    EnumType,
    IdlType,
    Interface,
    MapType,
    Method,
    NamedType,
    OptionalType,
    Primitive,
    StructType,
)

_TOKEN = re.compile(
    r"(?P<skip>[ \t\r\n]+|\#[^\n]*)|(?P<arrow>->)|(?P<map>\[string\])|(?P<array>\[\])"
    r"|(?P<mark>[(),:?])|(?P<word>[A-Za-z0-9_.\-]+)"
)
_INTERFACE = re.compile(r"[A-Za-z](-*[A-Za-z0-9])*(\.[A-Za-z0-9](-*[A-Za-z0-9])*)+")
_MEMBER = re.compile(r"[A-Z][A-Za-z0-9]*")
_FIELD = re.compile(r"[A-Za-z](_?[A-Za-z0-9])*")
_NESTING = 16


def parse_interface(text: str) -> Interface:
    """The interface that `text` describes.

    Raises:
        BadInterfaceError: Names the line, what was expected and what stands there.
    """
    parser = _Parser(text)
    parser.word("interface")
    name = parser.match(_INTERFACE, "an interface name with a dot")
    while parser.peek() is not None:
        parser.member()
    parser.check_names()
    return Interface(
        name=name, description=text, types=parser.types, methods=parser.methods, errors=parser.errors
    )


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._used: dict[str, int] = {}
        self._wanted: list[tuple[str, int]] = []
        self.types: dict[str, StructType | EnumType] = {}
        self.methods: dict[str, Method] = {}
        self.errors: dict[str, StructType] = {}

    def peek(self) -> str | None:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else None

    def word(self, expected: str) -> None:
        if self.peek() != expected:
            raise self._unexpected(repr(expected))
        self._at += 1

    def match(self, pattern: re.Pattern[str], what: str) -> str:
        token = self.peek()
        if token is None or not pattern.fullmatch(token):
            raise self._unexpected(what)
        self._at += 1
        return token

    def member(self) -> None:
        keyword = self.peek()
        if keyword not in ("type", "method", "error"):
            raise self._unexpected("type, method or error")
        self._at += 1
        line = self._line()
        name = self.match(_MEMBER, "a name that starts with a capital letter")
        if name in self._used:
            raise _bad(
                line, f"{name} is already declared in line {self._used[name]}; a name stands for one member"
            )
        self._used[name] = line
        if keyword == "type":
            self.types[name] = self._struct_or_enum(_NESTING)
        elif keyword == "error":
            self.errors[name] = self._struct("the parameters of an error")
        else:
            parameters = self._struct("the parameters of a method")
            self.word("->")
            self.methods[name] = Method(name, parameters, self._struct("the reply of a method"))

    def check_names(self) -> None:
        for name, line in self._wanted:
            if name not in self.types:
                raise _bad(line, f"no type {name} is declared in this interface")

    def _struct(self, what: str) -> StructType:
        line = self._line()
        found = self._struct_or_enum(_NESTING)
        if not isinstance(found, StructType):
            raise _bad(line, f"{what} must be fields with types")
        return found

    def _struct_or_enum(self, nesting: int) -> StructType | EnumType:
        if nesting == 0:
            raise self._unexpected(f"at most {_NESTING} levels of nesting")
        self.word("(")
        fields: dict[str, IdlType] = {}
        values: list[str] = []
        while self.peek() != ")" or fields or values:
            line = self._line()
            name = self.match(_FIELD, "a field name")
            if name in fields or name in values:
                raise _bad(line, f"field {name} stands twice")
            if self.peek() == ":" and not values:
                self._at += 1
                fields[name] = self._type(nesting)
            elif not fields:
                values.append(name)
            else:
                raise self._unexpected("':'")
            if self.peek() == ")":
                break
            self.word(",")
        self.word(")")
        return EnumType(tuple(values)) if values else StructType(fields)

    def _type(self, nesting: int) -> IdlType:
        found = self.peek()
        if found == "?":
            self._at += 1
            if self.peek() == "?":
                raise self._unexpected("a type after '?'")
            return OptionalType(self._type(nesting))
        if found in ("[]", "[string]"):
            self._at += 1
            if nesting == 0:
                raise self._unexpected(f"at most {_NESTING} levels of nesting")
            item = self._type(nesting - 1)
            return ArrayType(item) if found == "[]" else MapType(item)
        if found == "(":
            return self._struct_or_enum(nesting - 1)
        if found is not None and found in list(Primitive):
            self._at += 1
            return Primitive(found)
        line = self._line()
        name = self.match(_MEMBER, "a type")
        self._wanted.append((name, line))
        return NamedType(name)

    def _line(self) -> int:
        if self._at < len(self._tokens):
            return self._tokens[self._at][1]
        return self._tokens[-1][1] if self._tokens else 1

    def _unexpected(self, expected: str) -> BadInterfaceError:
        found = self.peek()
        return _bad(self._line(), f"expected {expected}, found {'the end' if found is None else repr(found)}")


def _tokens(text: str) -> list[tuple[str, int]]:
    tokens: list[tuple[str, int]] = []
    at, line = 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _bad(line, f"character {text[at]!r} has no meaning here")
        if found.lastgroup != "skip":
            tokens.append((found.group(), line))
        line += found.group().count("\n")
        at = found.end()
    return tokens


def _bad(line: int, finding: str) -> BadInterfaceError:
    return BadInterfaceError(f"interface file, line {line}: {finding}")
