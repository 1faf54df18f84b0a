"""The SMP face of the simulated injector: frames in, replies out, with the faults a device can have. Pure."""

import base64
import heapq
import itertools
import random
from collections.abc import Callable, Mapping
from typing import Final

from tidewaiter_hal import cbor
from tidewaiter_hal.frames import smp
from tidewaiter_hal.sim.bodies import Bodies, Body
from tidewaiter_hal.sim.faults import FaultPanel
from tidewaiter_hal.sim.physics import Injector
from tidewaiter_hal.sim.safety import MONITOR, RESTRICT, SafetyMonitor, Seen

GROUP_OS: Final = 0
GROUP_ENUMERATION: Final = 10
RC_READ_ONLY, RC_BAD_REQUEST, RC_CRC, RC_NOT_SUPPORTED = 2, 3, 10, 8
_LOGS: Final = {5: "faults", 6: "injections", 9: "events"}
_TTL_MS: Final = range(5_000, 300_001)


class _RefusedError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(str(code))
        self.code = code


class SmpServer:
    """Answers on the line."""

    def __init__(self, injector: Injector, *, seed: int = 1, console: bool = False) -> None:
        self.injector = injector
        self.faults = FaultPanel()
        self.monitor = SafetyMonitor()
        self.bodies = Bodies(injector, self.faults)
        self._console = console
        self._rng = random.Random(seed)  # noqa: S311 - a simulator has to repeat itself
        self._frames = smp.Reassembler()
        self._order = itertools.count()
        self._outgoing: list[tuple[float, int, bytes]] = []

    # The line

    def receive(self, data: bytes, now_s: float) -> None:
        """Bytes of the host."""
        self.injector.advance(now_s)
        for packet in self._frames.feed(data, now_s):
            self._take(packet, now_s)

    def due(self, now_s: float) -> bytes:
        """What leaves now."""
        out = b""
        while self._outgoing and self._outgoing[0][0] <= now_s:
            out += heapq.heappop(self._outgoing)[2]
        return out

    def next_due_s(self) -> float:
        """When the next reply leaves."""
        return self._outgoing[0][0] if self._outgoing else float("inf")

    def send(self, data: bytes, now_s: float, *, delay_s: float = 0.0) -> None:
        """Put bytes on the line."""
        heapq.heappush(self._outgoing, (now_s + delay_s, next(self._order), data))

    def strike(self, name: str, parameters: Mapping[str, str], now_s: float) -> None:
        """A fault that happens once."""
        self.injector.advance(now_s)
        number = {key: float(value) for key, value in parameters.items() if _is_number(value)}
        match name:
            case "reboot" | "brown_out":
                self._outgoing.clear()
                self._frames.reset()
                if parameters.get("banner", "true") == "true":
                    self.send(b"*** Booting Zephyr OS build v4.1.0 ***\r\n", now_s)
                silent_s = number.get("silent_ms", 800) / 1000
                self.injector.reboot(reason=2 if name == "brown_out" else 4, silent_s=silent_s)
            case "log_overflow":
                self._overflow(int(number.get("entries", 12)))
            case "log_format":
                self.injector.logs.format(self._rng.randrange(1, 1 << 32))
            case "uptime_near":
                self.injector.jump_uptime(int(number.get("ms", (1 << 32) - 3000)))
            case "unsolicited_frame":
                body = cbor.encode({"rc": 0})
                self.send(smp.encode(smp.Packet(op=1, group=MONITOR, command=1, seq=200, body=body)), now_s)

    def _overflow(self, entries: int) -> None:
        injector, logs = self.injector, self.injector.logs
        for index in range(entries):
            ms = injector.device_ms()
            logs.fault(injector.boot_id, ms, code=0x0300 + index, severity=1, board=0, argument=None)
            logs.event(injector.boot_id, ms, 8, index, 0)
        logs.faults.overflow()
        logs.events.overflow()

    # Requests

    def _take(self, packet: smp.Packet, now_s: float) -> None:
        self.monitor.note(
            Seen(
                at_ms=self.injector.device_ms(),
                op=packet.op,
                group=packet.group,
                command=packet.command,
                seq=packet.seq,
            )
        )
        if self.injector.is_silent or self.faults.strike("freeze_comm"):
            return
        try:
            body = self._answer(packet)
            if packet.group in (MONITOR, RESTRICT):
                content = self._envelope(packet, body)
            else:
                content = self._encode(body)
        except _RefusedError as err:
            content = cbor.encode({"err": {"group": packet.group, "rc": err.code}})
        self._reply(packet, content, now_s)

    def _answer(self, packet: smp.Packet) -> Body:
        if packet.version != 1 or packet.op not in (smp.Op.READ, smp.Op.WRITE):
            raise _RefusedError(RC_NOT_SUPPORTED)
        try:
            request = cbor.decode_map(packet.body)
        except cbor.CborError as err:
            raise _RefusedError(RC_BAD_REQUEST) from err
        if packet.group == MONITOR:
            if packet.op == smp.Op.WRITE:
                raise _RefusedError(RC_READ_ONLY)
            return self._read(packet.command, request)
        if packet.group == RESTRICT:
            return self._restrict(packet, request)
        if packet.op == smp.Op.READ and (packet.group, packet.command) == (GROUP_OS, 6):
            return {"buf_size": 1024, "buf_count": 4}
        if packet.op == smp.Op.READ and (packet.group, packet.command) == (GROUP_ENUMERATION, 1):
            return {"groups": [GROUP_OS, GROUP_ENUMERATION, MONITOR, RESTRICT]}
        raise _RefusedError(RC_NOT_SUPPORTED)

    def _read(self, command: int, request: Mapping[str, cbor.Value]) -> Body:
        if command in _LOGS:
            after, limit = request.get("a"), request.get("m")
            if not isinstance(after, int) or not isinstance(limit, int):
                raise _RefusedError(RC_BAD_REQUEST)
            return self.bodies.log(_LOGS[command], after, limit)
        simple: Mapping[int, Callable[[], Body]] = {
            0: self.bodies.identity,
            1: self.bodies.state,
            2: self.bodies.capabilities,
            3: self.bodies.channels,
            4: self.bodies.alarms,
            7: self.bodies.self_test,
            8: self.bodies.counters,
        }
        if command not in simple:
            raise _RefusedError(RC_NOT_SUPPORTED)
        return simple[command]()

    def _restrict(self, packet: smp.Packet, request: dict[str, cbor.Value]) -> Body:
        if packet.op == smp.Op.READ and packet.command == 0:
            lease = self.injector.lease
            return {
                **self.bodies.common(),
                "ac": lease is not None,
                "le": self.injector.lease_left_ms(),
                "pu": lease.purpose if lease else 0,
            }
        inner = smp.unwrap(request, group=packet.group, command=packet.command, seq=packet.seq)
        if packet.op != smp.Op.WRITE or inner is None:
            raise _RefusedError(RC_CRC)
        terms = cbor.decode_map(inner)
        token, ttl_ms, purpose = terms.get("tk"), terms.get("tt", 5_000), terms.get("pu", 1)
        if (
            not isinstance(token, bytes)
            or len(token) != 8
            or not isinstance(ttl_ms, int)
            or ttl_ms not in _TTL_MS
        ):
            raise _RefusedError(RC_BAD_REQUEST)
        code = {
            1: lambda: self.injector.acquire(token, ttl_ms, purpose if isinstance(purpose, int) else 0),
            2: lambda: self.injector.renew(token, ttl_ms),
            3: lambda: self.injector.release(token),
        }.get(packet.command, lambda: RC_NOT_SUPPORTED)()
        if code:
            raise _RefusedError(code)
        number = self.injector.sample.number
        return {**self.bodies.common(), "le": self.injector.lease_left_ms(), "n": number}

    # Replies and their faults

    def _encode(self, body: Body) -> bytes:
        if self.faults.strike("unknown_keys"):
            body = {**body, "zz": [1, {"new": None}], "z1": "a newer minor version"}
        data = cbor.encode(body)
        if self.faults.strike("indefinite_cbor"):
            head = 1 if data[0] < 0xB8 else 2
            data = b"\xbf" + data[head:] + b"\xff"
        return data

    def _envelope(self, packet: smp.Packet, body: Body) -> bytes:
        data = self._encode(body)
        crc = smp.envelope_crc(data, group=packet.group, command=packet.command, seq=packet.seq)
        if self.faults.strike("bad_crc32"):
            crc = bytes([crc[0] ^ 1]) + crc[1:]
        return cbor.encode({"b": data, "c": crc})

    def _reply(self, packet: smp.Packet, content: bytes, now_s: float) -> None:
        seq = (packet.seq + 1) & 0xFF if self.faults.strike("wrong_seq") else packet.seq
        answer = smp.Packet(
            op=packet.op + 1, group=packet.group, command=packet.command, seq=seq, body=content
        )
        frame = smp.encode(answer)
        if self.faults.strike("bad_crc16"):
            frame = _with_bad_crc16(answer)
        if self.faults.strike("oversize"):
            frame = smp.FIRST + base64.b64encode(b"\xff\xf0" + b"\x00" * 88) + b"\n"
        late = self.faults.strike("late_reply")
        delay_s = late.number("ms", 400) / 1000 if late else 0.004
        if self._console or self.faults.strike("garbage"):
            noise = bytes(self._rng.randrange(32, 127) for _ in range(self._rng.randrange(8, 60)))
            frame = b"<inf> motor: " + noise + b"\r\n" + noise[:7] + frame
        self.send(frame, now_s, delay_s=delay_s)
        if self.faults.strike("double_reply"):
            self.send(frame, now_s, delay_s=delay_s + 0.002)


def _with_bad_crc16(packet: smp.Packet) -> bytes:
    content = bytearray(smp.encode_packet(packet))
    content[-1] ^= 0x5A
    raw = len(content).to_bytes(2, "big") + bytes(content)
    out = b""
    for start in range(0, len(raw), smp.PAYLOAD_PER_LINE_BYTES):
        marker = smp.FIRST if start == 0 else smp.CONTINUATION
        out += marker + base64.b64encode(raw[start : start + smp.PAYLOAD_PER_LINE_BYTES]) + b"\n"
    return out


def _is_number(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdigit()
