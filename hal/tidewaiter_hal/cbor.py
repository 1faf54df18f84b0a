"""The strict CBOR subset of the injector protocol (hal-and-hil.md 7), encode and decode, nothing more.

Accepted: 64-bit integers, byte and text strings, arrays, maps with text keys, true, false, null, and
indefinite-length arrays and maps, because Zephyr's zcbor writes them. Refused: tags, floats, undefined,
duplicate keys, indefinite strings, trailing bytes, and anything over the limits below. The decoder never
trusts a length it has not checked against the bytes that are there.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

Value: TypeAlias = "int | bytes | str | bool | list[Value] | dict[str, Value] | None"
Encodable: TypeAlias = "int | bytes | str | bool | Sequence[Encodable] | Mapping[str, Encodable] | None"

MAX_DEPTH: Final = 4
MAX_ITEMS: Final = 256
MAX_TEXT_BYTES: Final = 64
MAX_BYTES: Final = 512

_UINT, _NINT, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_FALSE, _TRUE, _NULL, _BREAK = 0xF4, 0xF5, 0xF6, 0xFF
_INDEFINITE: Final = 31
_UINT64_LIMIT: Final = 1 << 64


class CborError(ValueError):
    """Bytes outside the subset. Stays inside the HAL: the frame around it is counted and dropped."""


def encode(value: Encodable) -> bytes:
    """Encode `value` with definite lengths and shortest integers.

    Raises:
        CborError: The value is outside the subset.
    """
    out = bytearray()
    _encode_into(out, value)
    return bytes(out)


def _encode_into(out: bytearray, value: Encodable) -> None:
    if value is None:
        out.append(_NULL)
    elif value is True:
        out.append(_TRUE)
    elif value is False:
        out.append(_FALSE)
    elif isinstance(value, int):
        major, argument = (_UINT, value) if value >= 0 else (_NINT, -1 - value)
        out += _head(major, argument)
    elif isinstance(value, bytes):
        out += _head(_BYTES, len(value)) + value
    elif isinstance(value, str):
        text = value.encode()
        out += _head(_TEXT, len(text)) + text
    elif isinstance(value, Mapping):
        out += _head(_MAP, len(value))
        for key, item in value.items():
            _encode_into(out, key)
            _encode_into(out, item)
    elif isinstance(value, Sequence):
        out += _head(_ARRAY, len(value))
        for item in value:
            _encode_into(out, item)
    else:
        raise CborError(f"{type(value).__name__} is not in the CBOR subset")


def _head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    for info, code, limit in ((24, "B", 1 << 8), (25, "H", 1 << 16), (26, "I", 1 << 32), (27, "Q", 1 << 64)):
        if argument < limit:
            return struct.pack(f">B{code}", major << 5 | info, argument)
    raise CborError(f"integer {argument} needs more than 64 bits")


def decode(data: bytes) -> Value:
    """Decode exactly one item that fills `data`.

    Raises:
        CborError: Anything outside the subset, including trailing bytes.
    """
    reader = _Reader(data)
    value = reader.item(depth=1)
    if reader.position != len(data):
        raise CborError(f"{len(data) - reader.position} bytes after the item")
    return value


def decode_map(data: bytes) -> dict[str, Value]:
    """Decode one item that must be a map."""
    value = decode(data)
    if not isinstance(value, dict):
        raise CborError("the item is not a map")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.items_left = MAX_ITEMS

    def item(self, *, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise CborError(f"nested deeper than {MAX_DEPTH}")
        self.items_left -= 1
        if self.items_left < 0:
            raise CborError(f"more than {MAX_ITEMS} items")
        initial = self._take(1)[0]
        major, info = initial >> 5, initial & 0x1F
        if major == _SIMPLE:
            return self._simple(initial)
        if major == _TAG:
            raise CborError("tags are refused")
        if info == _INDEFINITE:
            if major == _ARRAY:
                return self._array(None, depth)
            if major == _MAP:
                return self._map(None, depth)
            raise CborError("indefinite length is allowed for arrays and maps only")
        return self._sized(major, self._argument(info), depth)

    def _sized(self, major: int, argument: int, depth: int) -> Value:
        if major == _UINT:
            return argument
        if major == _NINT:
            return -1 - argument
        if major == _BYTES:
            return self._string(argument, MAX_BYTES)
        if major == _TEXT:
            return self._text(argument)
        if argument > self.items_left:
            raise CborError(f"more than {MAX_ITEMS} items")
        return self._array(argument, depth) if major == _ARRAY else self._map(argument, depth)

    def _simple(self, initial: int) -> bool | None:
        if initial == _NULL:
            return None
        if initial in (_FALSE, _TRUE):
            return initial == _TRUE
        raise CborError(f"simple value or float 0x{initial:02x} is refused")

    def _argument(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise CborError(f"reserved additional information {info}")
        return int.from_bytes(self._take(1 << (info - 24)), "big")

    def _string(self, length: int, limit: int) -> bytes:
        if length > limit:
            raise CborError(f"string of {length} bytes, limit {limit}")
        return self._take(length)

    def _text(self, length: int) -> str:
        try:
            return self._string(length, MAX_TEXT_BYTES).decode()
        except UnicodeDecodeError as err:
            raise CborError("text is not UTF-8") from err

    def _array(self, count: int | None, depth: int) -> list[Value]:
        items: list[Value] = []
        while not self._ended(count, len(items)):
            items.append(self.item(depth=depth + 1))
        return items

    def _map(self, count: int | None, depth: int) -> dict[str, Value]:
        entries: dict[str, Value] = {}
        while not self._ended(count, len(entries)):
            key = self.item(depth=depth + 1)
            if not isinstance(key, str):
                raise CborError("a map key is not text")
            if key in entries:
                raise CborError("a map key occurs twice")
            entries[key] = self.item(depth=depth + 1)
        return entries

    def _ended(self, count: int | None, have: int) -> bool:
        if count is not None:
            return have >= count
        if self.position < len(self.data) and self.data[self.position] == _BREAK:
            self.position += 1
            return True
        return False

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise CborError(f"item needs {end - len(self.data)} bytes more than there are")
        taken = self.data[self.position : end]
        self.position = end
        return taken
