"""The command table of the SMP reference protocol: every frame this product can ever send to an injector.

MONITOR rows all read (op 0). RESTRICT rows belong to the inhibit lease: it can only set lockouts, expires on the
device's own clock, and the operator can cancel it.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from tidewaiter_hal import cbor
from tidewaiter_hal.errors import GateRefusedError
from tidewaiter_hal.frames import smp
from tidewaiter_hal.injector import Command, CommandKind, CommandTable, Request

GROUP_OS: Final = 0
GROUP_ENUMERATION: Final = 10
GROUP_MONITOR: Final = 0x5457
GROUP_RESTRICT: Final = 0x5458
PROTOCOL_MAJOR: Final = 1

_TIMEOUT_S: Final = 0.25
_TRIES: Final = 3
_CURSOR: Final[Mapping[str, type]] = {"a": int, "m": int}


def _monitor(
    name: str, group: int, command: int, answer: int, keys: Mapping[str, type] | None = None
) -> Command:
    return Command(
        name=name,
        kind=CommandKind.MONITOR,
        rule=(smp.Op.READ, group, command),
        body_keys=keys or {},
        side_effects="",
        feeds_watchdog=False,
        timeout_s=_TIMEOUT_S,
        tries=_TRIES,
        answer_limit_bytes=answer,
    )


def _restrict(name: str, op: smp.Op, command: int, keys: Mapping[str, type], effect: str) -> Command:
    return Command(
        name=name,
        kind=CommandKind.RESTRICT,
        rule=(op, GROUP_RESTRICT, command),
        body_keys=keys,
        side_effects=effect,
        feeds_watchdog=False,
        timeout_s=_TIMEOUT_S,
        tries=_TRIES,
        answer_limit_bytes=128,
    )


_TOKEN: Final[Mapping[str, type]] = {"tk": bytes}
_TERMS: Final[Mapping[str, type]] = {"tk": bytes, "tt": int}

TABLE: Final = CommandTable(
    [
        _monitor("parameters", GROUP_OS, 6, 64),
        _monitor("groups", GROUP_ENUMERATION, 1, 128),
        _monitor("identity", GROUP_MONITOR, 0, 400),
        _monitor("state", GROUP_MONITOR, 1, 256),
        _monitor("capabilities", GROUP_MONITOR, 2, 256),
        _monitor("channels", GROUP_MONITOR, 3, 256),
        _monitor("alarms", GROUP_MONITOR, 4, 400),
        _monitor("faults", GROUP_MONITOR, 5, 512, _CURSOR),
        _monitor("injections", GROUP_MONITOR, 6, 512, _CURSOR),
        _monitor("selftest", GROUP_MONITOR, 7, 128),
        _monitor("counters", GROUP_MONITOR, 8, 128),
        _monitor("events", GROUP_MONITOR, 9, 400, _CURSOR),
        _restrict("lease-status", smp.Op.READ, 0, {}, ""),
        _restrict(
            "lease-acquire", smp.Op.WRITE, 1, {**_TERMS, "pu": int}, "sets lockouts until the lease ends"
        ),
        _restrict("lease-renew", smp.Op.WRITE, 2, _TERMS, "keeps lockouts set"),
        _restrict("lease-release", smp.Op.WRITE, 3, _TOKEN, "ends the lease's lockouts"),
    ]
)


def is_enveloped(group: int) -> bool:
    """Whether success replies of `group` carry the CRC-32 envelope."""
    return group in (GROUP_MONITOR, GROUP_RESTRICT)


class SmpCodec:
    """Requests to lines and back (the gate compares the two)."""

    def encode(self, command: Command, request: Request) -> bytes:
        """The lines of `request` as row `command` says."""
        op, group, number = command.rule
        body = request.body
        if op == smp.Op.WRITE:
            body = smp.wrap(body, group=group, command=number, seq=request.seq)
        return smp.encode(smp.Packet(op=op, group=group, command=number, seq=request.seq, body=body))

    def classify(self, frame: bytes) -> tuple[Sequence[int], Mapping[str, object]]:
        """Wire rule and body of exactly one whole frame.

        Raises:
            GateRefusedError: The bytes are anything else.
        """
        reassembler = smp.Reassembler()
        packets = reassembler.feed(frame, 0.0)
        if len(packets) != 1 or reassembler.damage or smp.encode(packets[0]) != frame:
            raise GateRefusedError(
                "gate: exactly one SMP frame was expected, the bytes are not; nothing was sent"
            )
        packet = packets[0]
        try:
            body = cbor.decode_map(packet.body)
            if packet.op == smp.Op.WRITE:
                inner = smp.unwrap(body, group=packet.group, command=packet.command, seq=packet.seq)
                body = cbor.decode_map(inner) if inner is not None else {"": None}
        except cbor.CborError as err:
            raise GateRefusedError(f"gate: request body: {err}; nothing was sent") from err
        return (packet.op, packet.group, packet.command), body
