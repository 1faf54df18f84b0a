"""release.json: what is read, and every way it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidewaiter_core.model import Sha256
from tidewaiter_core.payload import (
    PayloadError,
    PayloadVersionError,
    Release,
    ReleaseRequiresError,
    ReleaseSchemaError,
    build_release,
    release_path,
)
from tidewaiter_core.payload.policy import FirmwareRange, Rollout, SequenceRange
from tidewaiter_core.payload.release import RELEASE_LIMIT_BYTES, FirmwareComponent, UkiComponent

from tests.sim.release_document import changed, digest, release_fields


def encoded(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()


def test_a_full_document_is_read_field_by_field() -> None:
    release = Release.parse(build_release(release_fields()))
    assert (release.product, release.version, release.sequence) == ("contrast-injector", "2.4.1", 17)
    assert release.slot.chunk_count == 16
    assert release.slot.patches[0].from_root == digest("old root")
    assert isinstance(release.components[1], UkiComponent)
    assert isinstance(release.firmware[0], FirmwareComponent)
    assert release.firmware_compat["head"].max == "1.4.9"
    assert release.notes["en"].count("\n") == 1
    assert release.path == release_path("contrast-injector", "2.4.1")


def test_the_pieces_of_a_kernel_image_cover_it_in_order_and_may_be_equal() -> None:
    release = Release.parse(build_release(changed("components.1.pieces", [digest("zeros")] * 9)))
    kernel = release.components[1]
    assert isinstance(kernel, UkiComponent)
    assert [piece.offset for piece in kernel.pieces] == [number * 1024**2 for number in range(9)]
    assert sum(piece.length for piece in kernel.pieces) == kernel.length == 9_000_000
    assert {piece.sha256 for piece in kernel.pieces} == {digest("zeros")}


def test_the_only_piece_of_a_kernel_image_is_the_whole() -> None:
    fields = changed("components.1.length", 1024**2)
    fields["components"][1]["pieces"] = [digest("uki")]
    assert Release.parse(build_release(fields)).components[1]
    fields["components"][1]["pieces"] = [digest("another")]
    with pytest.raises(ReleaseSchemaError, match="the only piece is the whole image"):
        Release.parse(encoded(fields))


def test_the_pieces_of_two_kernel_images_of_the_largest_size_leave_room_in_the_document() -> None:
    fields = release_fields()
    largest = fields["components"][1] | {"length": 128 * 1024**2}
    largest["pieces"] = [digest(f"piece {number}") for number in range(128)]
    fields["components"] = [fields["components"][0], largest, largest | {"slot": "B"}]
    assert len(build_release(fields)) < RELEASE_LIMIT_BYTES // 2


def test_the_digest_is_that_of_the_bytes_and_txn_its_first_8_bytes() -> None:
    data = build_release(release_fields())
    release = Release.parse(data)
    assert release.digest == Sha256.of(data)
    assert release.txn == release.digest[:16]


def test_the_builder_gives_the_same_bytes_for_any_key_order() -> None:
    fields = release_fields()
    assert build_release(fields) == build_release(dict(reversed(fields.items())))


def test_optional_fields_may_be_absent() -> None:
    fields = release_fields()
    for key in ("firmware_compat", "rollout", "sbom", "notes"):
        del fields[key]
    release = Release.parse(encoded(fields))
    assert (release.rollout, release.sbom, release.notes, release.firmware_compat) == (None, None, {}, {})


def test_keys_that_start_with_x_are_ignored_at_every_level() -> None:
    fields = release_fields()
    fields["x_ticket"] = {"any": ["thing"]}
    fields["components"][0]["x_note"] = 1
    fields["policy"]["x_note"] = None
    fields["notes"]["x_note"] = 7
    assert Release.parse(encoded(fields)).sequence == 17


@pytest.mark.parametrize(
    "place", ["colour", "components.0.colour", "policy.colour", "from.colour", "sbom.colour"]
)
def test_an_unknown_key_is_refused_at_every_level(place: str) -> None:
    with pytest.raises(ReleaseSchemaError, match="colour: unknown key"):
        Release.parse(encoded(changed(place, 1)))


def every_required_place() -> list[str]:
    optional = {"firmware_compat", "rollout", "sbom", "notes", "notes.en", "notes.de", "firmware_compat.head"}
    places: list[str] = []

    def walk(value: Any, prefix: str) -> None:
        if not isinstance(value, dict):
            return
        for key, child in value.items():
            places.append(f"{prefix}{key}")
            walk(child, f"{prefix}{key}.")

    fields = release_fields()
    walk(fields, "")
    for number, component in enumerate(fields["components"]):
        walk(component, f"components.{number}.")
    walk(fields["components"][0]["patches"][0], "components.0.patches.0.")
    return [place for place in places if place not in optional]


@pytest.mark.parametrize("place", every_required_place())
def test_a_missing_field_is_refused(place: str) -> None:
    with pytest.raises(PayloadError, match="missing"):
        Release.parse(encoded(changed(place, ...)))


@pytest.mark.parametrize("place", every_required_place())
@pytest.mark.parametrize("value", [1.5, {"a": 1}, "\x1b[2J", -1, 2**64])
def test_a_value_of_the_wrong_kind_is_refused(place: str, value: Any) -> None:
    with pytest.raises(PayloadError):
        Release.parse(encoded(changed(place, value)))


BOUNDS = [
    ("product", "contrast_injector"),
    ("product", "-x"),
    ("product", "a" * 33),
    ("version", "1" * 65),
    ("version", "1/2"),
    ("version", ".."),
    ("sequence", 0),
    ("sequence", 2**32),
    ("sequence", True),
    ("security_epoch", 2**16),
    ("built_utc", "2026-11-01T08:00:00+01:00"),
    ("built_utc", "2026-13-01T08:00:00Z"),
    ("built_utc", "2026-11-01 08:00:00Z"),
    ("hw", []),
    ("hw", [f"ci-{number}" for number in range(33)]),
    ("hw", ["ci-300", "ci-300"]),
    ("hw", ["x" * 257]),
    ("from.min_sequence", 17),
    ("components", []),
    ("components.0.image_bytes", 1024 * 1024 + 512),
    ("components.0.image_bytes", 256 * 1024**3 + 4096),
    ("components.0.chunk_bytes", 131_072),
    ("components.0.fs", "btrfs"),
    ("components.0.image_root", "A" * 64),
    ("components.0.verity.salt", "abc"),
    ("components.0.verity.hash_offset", 512),
    ("components.0.index.length", 160 + 84 * 17),
    ("components.0.index.path", "releases/other-product/2.4.1/index.twci"),
    ("components.0.index.path", "releases/contrast-injector/index.twci"),
    ("components.0.pack.path", "releases/contrast-injector/../pack.twpk"),
    ("components.0.pack.path", "releases/contrast-injector//pack.twpk"),
    ("components.0.pack.path", "releases/contrast-injector/2.4.1/.pack"),
    ("components.0.pack.length", 63),
    ("components.0.pack.length", 64 + 1024 * 1024 + 1),
    ("components.0.patches.0.head_bytes", 223),
    ("components.0.patches.0.head_bytes", 40_001),
    ("components.0.patches.0.from_root", digest("root")),
    ("components.1.length", 128 * 1024**2 + 1),
    ("components.1.slot", "C"),
    ("components.1.pieces", [digest("piece")] * 8),
    ("components.1.pieces", [digest("piece")] * 10),
    ("components.1.pieces", [digest("piece")] * 8 + ["0" * 63]),
    ("components.2.length", 4 * 1024**2 + 1),
    ("components.2.path", "releases/contrast-injector/2.4.1/head.bin"),
    ("components.2.image_path", "/etc/passwd"),
    ("data.reads_max", 2),
    ("data.writes", 5),
    ("firmware_compat.head.min", "1.5.0"),
    ("firmware_compat.head.min", "1.300.0"),
    ("firmware_compat", {"Head": {"min": "1.0.0", "max": "1.0.0"}}),
    ("health.required", ["not a name"]),
    ("health.deadline_s", 59),
    ("health.deadline_s", 3601),
    ("health.hold_s", 601),
    ("policy.consent", "maybe"),
    ("policy.risk", "none"),
    ("policy.tries", 0),
    ("policy.tries", 10),
    ("policy.activation", "now"),
    ("policy.max_fetch_bytes", 0),
    ("rollout.salt", "0" * 31),
    ("rollout.percent_x100", 10_001),
    ("notes", {"en": "x" * 2049}),
    ("notes", {"english language": "x"}),
    ("notes", {"en": "\x1b[31mred"}),
    ("x_text", "y" * 257),
    ("x_deep", [[[[[[[[1]]]]]]]]),
    ("x_number", 1.0),
]


@pytest.mark.parametrize(("place", "value"), BOUNDS)
def test_a_value_out_of_bounds_is_refused(place: str, value: Any) -> None:
    with pytest.raises(ReleaseSchemaError):
        Release.parse(encoded(changed(place, value)))


def test_exactly_one_slot_component_is_asked_for() -> None:
    fields = release_fields()
    del fields["components"][0]
    with pytest.raises(ReleaseSchemaError, match="exactly one of kind slot, found 0"):
        Release.parse(encoded(fields))


def test_two_firmware_images_for_one_board_are_refused() -> None:
    fields = release_fields()
    fields["components"].append(dict(fields["components"][2]))
    with pytest.raises(ReleaseSchemaError, match="firmware for board"):
        Release.parse(encoded(fields))


def test_a_newer_format_is_a_version_error() -> None:
    with pytest.raises(PayloadVersionError, match="format 2") as caught:
        Release.parse(encoded(changed("format", 2)))
    assert caught.value.code == "payload.version"


def test_an_unknown_requirement_is_named_before_the_keys_that_come_with_it() -> None:
    fields = changed("requires", ["two-slots"])
    fields["new_key"] = 1
    with pytest.raises(ReleaseRequiresError, match="two-slots") as caught:
        Release.parse(encoded(fields))
    assert caught.value.code == "release.requires"


def test_a_known_requirement_is_accepted() -> None:
    release = Release.parse(encoded(changed("requires", ["two-slots"])), features=frozenset({"two-slots"}))
    assert release.requires == ("two-slots",)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'{"format":1,"format":1}',
        b'{"format":NaN}',
        b'{"format":1e0}',
        b'\xff{"format":1}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"format":' + b"9" * 10_000 + b"}",
        b'{"product":"\\ud800"}',
        b"<html>403</html>",
        b" " * 65_537,
    ],
)
def test_what_is_no_strict_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ReleaseSchemaError):
        Release.parse(data)


def test_a_message_never_carries_control_characters_of_the_document() -> None:
    fields = release_fields()
    fields["\x1b[2J"] = 1
    with pytest.raises(ReleaseSchemaError) as caught:
        Release.parse(encoded(fields))
    assert "\x1b" not in str(caught.value)


def test_the_builder_refuses_fields_that_have_no_json_form() -> None:
    with pytest.raises(ReleaseSchemaError, match="nothing was built"):
        build_release({"format": object()})


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_payload_errors(data: bytes) -> None:
    with pytest.raises(PayloadError):
        Release.parse(data)


VALID = build_release(release_fields())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_bytes_raise_nothing_but_payload_errors(changes: list[tuple[int, int]]) -> None:
    data = bytearray(VALID)
    for position, value in changes:
        data[position] = value
    try:
        Release.parse(bytes(data))
    except PayloadError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(every_required_place()), JSON)
def test_any_json_value_in_any_place_raises_nothing_but_payload_errors(place: str, value: Any) -> None:
    try:
        Release.parse(json.dumps(changed(place, value)).encode())
    except PayloadError:
        return


def test_the_rollout_share_is_the_documented_function_of_salt_and_serial() -> None:
    document = Release.parse(encoded(release_fields())).rollout
    assert document is not None
    # printf '%s' "00000000000000000000000000000000:INJ-000123" | sha256sum -> first 8 bytes, modulo 10000
    assert int(Sha256.of(b"0" * 32 + b":INJ-000123")[:16], 16) % 10_000 == 1774
    share = [
        Rollout(salt=document.salt, percent_x100=percent, not_before_utc=document.not_before_utc)
        for percent in (0, 1774, 1775, 10_000)
    ]
    assert [one.includes("INJ-000123") for one in share] == [False, False, True, True]


def test_the_from_range_includes_both_ends() -> None:
    allowed = SequenceRange(min_sequence=10, max_sequence=16)
    assert [number in allowed for number in (9, 10, 16, 17)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("version", "inside"),
    [
        ("1.3.0", True),
        ("1.4.9+0", True),
        ("1.4.9+1", False),
        ("1.10.0", False),
        ("1.2.99", False),
        ("v1.4", False),
    ],
)
def test_firmware_versions_compare_by_number_and_unknown_text_is_outside(version: str, inside: bool) -> None:
    assert (version in FirmwareRange(min="1.3.0", max="1.4.9")) is inside
