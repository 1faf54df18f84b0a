"""The gate: whatever a driver asks for, only table rows leave."""

import ast
from pathlib import Path

import pytest
import tidewaiter_hal
from hypothesis import given
from hypothesis import strategies as st
from tidewaiter_hal import cbor
from tidewaiter_hal.drivers.smp_reference import driver
from tidewaiter_hal.drivers.smp_table import TABLE, SmpCodec
from tidewaiter_hal.errors import DriverTableError, GateRefusedError
from tidewaiter_hal.frames import smp
from tidewaiter_hal.gate import Gate
from tidewaiter_hal.injector import Command, CommandKind, CommandTable, Injector, Permit, Request

RESTRICT = Permit(kind=CommandKind.RESTRICT, reason="test")
NAMES = [row.name for row in TABLE.rows()]


def _gate(codec: SmpCodec | None = None) -> tuple[Gate, list[bytes]]:
    written: list[bytes] = []
    return Gate(TABLE, codec or SmpCodec(), driver.line(115_200), write=written.append), written


def _request(command: str, body: cbor.Encodable = None, permit: Permit | None = None) -> Request:
    encoded = cbor.encode({} if body is None else body)
    return Request(command=command, seq=5, body=encoded, sent_s=0.0, timeout_s=1.0, permit=permit)


@given(
    command=st.one_of(st.sampled_from(NAMES), st.text(max_size=10)),
    body=st.one_of(
        st.binary(max_size=40),
        st.dictionaries(
            st.sampled_from(["a", "m", "tk", "tt", "pu", "x"]),
            st.one_of(st.integers(0, 1000), st.binary(max_size=8), st.booleans(), st.none()),
            max_size=4,
        ).map(cbor.encode),
    ),
    permit=st.sampled_from([None, RESTRICT, Permit(kind=CommandKind.UPDATE, reason="test")]),
    seq=st.integers(0, 255),
)
def test_gate_emits_only_table_rows_for_any_request(
    command: str, body: bytes, permit: Permit | None, seq: int
) -> None:
    gate, written = _gate()
    try:
        gate.emit(Request(command=command, seq=seq, body=body, sent_s=0.0, timeout_s=1.0, permit=permit))
    except GateRefusedError:
        assert written == []
        return
    (packet,) = smp.Reassembler().feed(written[0], 0.0)
    row = TABLE[command]
    assert (packet.op, packet.group, packet.command) == tuple(row.rule)
    assert row.kind is CommandKind.MONITOR or permit is RESTRICT


def test_every_monitor_row_reads() -> None:
    assert {row.rule[0] for row in TABLE.rows() if row.kind is CommandKind.MONITOR} == {smp.Op.READ}


@pytest.mark.parametrize("name", [row.name for row in TABLE.rows() if row.kind is not CommandKind.MONITOR])
def test_a_lease_command_without_permit_is_refused(name: str) -> None:
    gate, written = _gate()
    with pytest.raises(GateRefusedError, match="permit"):
        gate.emit(_request(name, {"tk": bytes(8)}))
    assert written == []


def test_a_codec_that_encodes_another_command_is_caught() -> None:
    class WrongCodec(SmpCodec):
        def encode(self, command: Command, request: Request) -> bytes:
            return smp.encode(smp.Packet(op=2, group=0x5457, command=1, seq=1, body=request.body))

    gate, written = _gate(WrongCodec())
    with pytest.raises(GateRefusedError):
        gate.emit(_request("state"))
    assert written == []


def test_a_codec_that_adds_a_second_frame_is_caught() -> None:
    class TwoFrames(SmpCodec):
        def encode(self, command: Command, request: Request) -> bytes:
            frame = super().encode(command, request)
            return frame + frame

    gate, written = _gate(TwoFrames())
    with pytest.raises(GateRefusedError):
        gate.emit(_request("state"))
    assert written == []


def test_public_surface_of_injector_has_no_transmitting_name() -> None:
    public = {name for name in vars(Injector) if not name.startswith("_")}
    assert public == {
        "identity",
        "capabilities",
        "snapshot",
        "faults",
        "injections",
        "self_test_result",
        "subscribe",
    }


def test_only_the_lease_makes_permits() -> None:
    makers = set()
    for path in Path(tidewaiter_hal.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Permit":
                makers.add(path.name)
    assert makers == {"lease_wire.py"}


def test_a_table_row_without_time_out_is_refused_at_import() -> None:
    row = TABLE["state"]
    incomplete = Command(
        name="x",
        kind=row.kind,
        rule=(0, 1, 1),
        body_keys={},
        side_effects="",
        feeds_watchdog=False,
        timeout_s=0,
        tries=3,
        answer_limit_bytes=10,
    )
    with pytest.raises(DriverTableError, match="incomplete"):
        CommandTable([incomplete])
