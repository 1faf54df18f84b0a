"""SMP over a console line (hal-and-hil.md 7): packets, lines, check sums, reassembly and resynchronization.

Invariants of the receiving side: memory is bounded whatever arrives, a packet is delivered only when its
length and CRC-16 fit, and console text between frames is ignored. Damage is counted by kind, never raised.
"""

import base64
import binascii
import struct
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from tidewaiter_hal import cbor

FIRST: Final = b"\x06\x09"
CONTINUATION: Final = b"\x04\x14"
LINE_END: Final = b"\n"
LINE_LIMIT_BYTES: Final = 512
PACKET_LIMIT_BYTES: Final = 1024
PAYLOAD_PER_LINE_BYTES: Final = 93
REASSEMBLY_LIMIT_S: Final = 2.0
HEADER_BYTES: Final = 8
_CRC_BYTES: Final = 2
_VERSION: Final = 1
_HEADER: Final = struct.Struct(">BBHHBB")


class Op(IntEnum):
    """The operation field; even numbers ask, odd numbers answer."""

    READ = 0
    READ_REPLY = 1
    WRITE = 2
    WRITE_REPLY = 3


class Damage:
    """Names under which damaged input is counted."""

    OVERLONG_LINE = "overlong-line"
    BASE64 = "base64"
    ORPHAN = "orphan"
    ABANDONED = "abandoned"
    LENGTH = "length"
    OVERSIZE = "oversize"
    CRC16 = "crc16"
    CRC32 = "crc32"
    HEADER = "header"
    CBOR = "cbor"
    MISSING_KEY = "missing-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One SMP message."""

    op: int
    group: int
    command: int
    seq: int
    body: bytes
    """Encoded CBOR, not yet looked at."""
    version: int = _VERSION


def encode_packet(packet: Packet) -> bytes:
    """Header, body and CRC-16/XMODEM, without the length in front."""
    head = _HEADER.pack(
        packet.version << 3 | packet.op, 0, len(packet.body), packet.group, packet.seq, packet.command
    )
    content = head + packet.body
    return content + struct.pack(">H", binascii.crc_hqx(content, 0))


def encode(packet: Packet) -> bytes:
    """All lines of `packet`, ready for the port."""
    content = encode_packet(packet)
    raw = struct.pack(">H", len(content)) + content
    out = bytearray()
    for start in range(0, len(raw), PAYLOAD_PER_LINE_BYTES):
        out += FIRST if start == 0 else CONTINUATION
        out += base64.b64encode(raw[start : start + PAYLOAD_PER_LINE_BYTES]) + LINE_END
    return bytes(out)


class Reassembler:
    """Turns arriving bytes into packets whose length and CRC-16 are right."""

    def __init__(self) -> None:
        self.damage: Counter[str] = Counter()
        self._line = bytearray()
        self._skipping = False
        self._partial: bytearray | None = None
        self._started_s = 0.0

    def reset(self) -> None:
        """Forget an unfinished line and packet; the counters stay."""
        self._line.clear()
        self._skipping = False
        self._partial = None

    def feed(self, data: bytes, now_s: float) -> list[Packet]:
        """Take the next bytes in any split; return the packets that became complete."""
        packets: list[Packet] = []
        *ended, rest = data.split(LINE_END)
        for part in ended:
            line = self._finish_line(part)
            if line is not None:
                packet = self._take_line(line, now_s)
                if packet is not None:
                    packets.append(packet)
        self._extend(rest)
        return packets

    def _extend(self, part: bytes) -> None:
        if self._skipping:
            return
        if len(self._line) + len(part) > LINE_LIMIT_BYTES:
            # The rest of this line is dropped as it arrives: a peer that never sends LF costs no memory.
            self._skipping = True
            self._line.clear()
            self.damage[Damage.OVERLONG_LINE] += 1
            return
        self._line += part

    def _finish_line(self, part: bytes) -> bytes | None:
        self._extend(part)
        line = None if self._skipping else bytes(self._line)
        self._line.clear()
        self._skipping = False
        return line

    def _take_line(self, line: bytes, now_s: float) -> Packet | None:
        # The console shares the line, so text may stand in front: the last marker counts.
        first, continued = line.rfind(FIRST), line.rfind(CONTINUATION)
        if first < 0 and continued < 0:
            return None
        if first > continued and self._partial is not None:
            self.damage[Damage.ABANDONED] += 1
            self._partial = None
        payload = self._decode_line(line[max(first, continued) + 2 :].rstrip(b"\r"))
        if payload is None:
            self._partial = None
            return None
        if first > continued:
            self._partial = bytearray(payload)
            self._started_s = now_s
        elif self._partial is None:
            self.damage[Damage.ORPHAN] += 1
            return None
        elif now_s - self._started_s > REASSEMBLY_LIMIT_S:
            self.damage[Damage.ABANDONED] += 1
            self._partial = None
            return None
        else:
            self._partial += payload
        return self._complete()

    def _decode_line(self, text: bytes) -> bytes | None:
        try:
            payload = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            payload = b""
        if not payload:
            self.damage[Damage.BASE64] += 1
            return None
        return payload

    def _complete(self) -> Packet | None:
        partial = self._partial
        if partial is None or len(partial) < 2:
            return None
        expected = int.from_bytes(partial[:2], "big")
        if expected > PACKET_LIMIT_BYTES or expected < HEADER_BYTES + _CRC_BYTES:
            self.damage[Damage.OVERSIZE if expected > PACKET_LIMIT_BYTES else Damage.LENGTH] += 1
            self._partial = None
            return None
        have = len(partial) - 2
        if have < expected:
            return None
        self._partial = None
        if have > expected:
            self.damage[Damage.LENGTH] += 1
            return None
        return self._parse(bytes(partial[2:]))

    def _parse(self, content: bytes) -> Packet | None:
        if binascii.crc_hqx(content, 0) != 0:
            self.damage[Damage.CRC16] += 1
            return None
        first, _flags, length, group, seq, command = _HEADER.unpack_from(content)
        body = content[HEADER_BYTES:-_CRC_BYTES]
        if length != len(body):
            self.damage[Damage.HEADER] += 1
            return None
        return Packet(op=first & 7, version=first >> 3 & 3, group=group, command=command, seq=seq, body=body)


def envelope_crc(body: bytes, *, group: int, command: int, seq: int) -> bytes:
    """CRC-32 over where the body belongs and the body (8.1): ties a reply to its request."""
    return struct.pack(">I", binascii.crc32(struct.pack(">HBB", group, command, seq) + body))


def wrap(body: bytes, *, group: int, command: int, seq: int) -> bytes:
    """The envelope {"b": body, "c": crc} as encoded CBOR."""
    return cbor.encode({"b": body, "c": envelope_crc(body, group=group, command=command, seq=seq)})


def unwrap(envelope: dict[str, cbor.Value], *, group: int, command: int, seq: int) -> bytes | None:
    """The body inside a decoded envelope, or None when it is missing or its CRC-32 is wrong."""
    body, crc = envelope.get("b"), envelope.get("c")
    if not isinstance(body, bytes) or not isinstance(crc, bytes):
        return None
    return body if crc == envelope_crc(body, group=group, command=command, seq=seq) else None
