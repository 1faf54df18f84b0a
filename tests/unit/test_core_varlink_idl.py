"""Interface files: the grammar, the shipped files, and values against types."""

from __future__ import annotations

from typing import Any

import pytest
import varlink.scanner  # the public package: a second opinion on our files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tidewaiter_core.varlink import BadInterfaceError, Interface, interface_names, load_interface
from tidewaiter_core.varlink.idl import Direction, EnumType, OptionalType, Primitive, ShapeError, shape
from tidewaiter_core.varlink.idl_parse import parse_interface

TEXT = """
# A comment, (with: marks -> inside)
interface org.example.Test-1

type Color (red, green, blue)
type Point (x: int, y: ?int) # behind code
type Tree (value: string, children: []Tree)

method Draw(at: Point, color: Color, tags: [string]string, sizes: []?float, any: object, nested: (on: bool))
  -> (count: int, kind: (open, closed), list: []string, where: ?Point, tree: ?Tree)
method Nothing() -> ()

error Failed (why: string)
error Empty ()
"""


@pytest.fixture(scope="module")
def interface() -> Interface:
    return parse_interface(TEXT)


def good() -> dict[str, Any]:
    return {
        "at": {"x": 1, "y": 2},
        "color": "red",
        "tags": {"a": "b"},
        "sizes": [1.5, None, 2],
        "any": {"deep": [1]},
        "nested": {"on": True},
    }


def accept(interface: Interface, value: Any, direction: Direction = Direction.REQUEST) -> Any:
    return shape(interface, interface.methods["Draw"].parameters, value, direction)


@pytest.mark.parametrize("name", interface_names())
def test_every_interface_file_parses(name: str) -> None:
    parsed = load_interface(name)
    assert parsed.name == name
    assert parsed.methods


@pytest.mark.parametrize("name", [*interface_names(), "org.varlink.service"])
def test_the_public_package_reads_every_interface_file_with_the_same_members(name: str) -> None:
    ours = load_interface(name)
    theirs = varlink.scanner.Interface(ours.description)
    assert set(theirs.members) == {*ours.types, *ours.methods, *ours.errors}


def test_an_unknown_interface_is_named_with_the_known_ones() -> None:
    with pytest.raises(BadInterfaceError, match=r"io\.tidewaiter\.Nope.*io\.tidewaiter\.Relay"):
        load_interface("io.tidewaiter.Nope")


def test_a_path_is_not_an_interface_name() -> None:
    with pytest.raises(BadInterfaceError):
        load_interface("../interfaces/io.tidewaiter.Relay")


def test_members_of_each_kind_are_found(interface: Interface) -> None:
    assert interface.name == "org.example.Test-1"
    assert list(interface.methods) == ["Draw", "Nothing"]
    assert list(interface.errors) == ["Failed", "Empty"]
    assert interface.types["Color"] == EnumType(("red", "green", "blue"))
    assert interface.methods["Draw"].parameters.fields["sizes"].item == OptionalType(Primitive.FLOAT)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("", "line 1: expected 'interface', found the end"),
        ("interface nodot", "interface name with a dot"),
        ("interface a.b\ntype lower (a: int)", "line 2: expected a name that starts with a capital"),
        ("interface a.b\ntype A (a: int,)", r"expected a field name, found '\)'"),
        ("interface a.b\ntype A (a: int, b)", "expected ':'"),
        ("interface a.b\ntype A (a, b: int)", "expected ','"),
        ("interface a.b\ntype A (a: int, a: int)", "field a stands twice"),
        ("interface a.b\ntype A (a: ??int)", "a type after '\\?'"),
        ("interface a.b\ntype A (a: Gone)", "no type Gone"),
        ("interface a.b\ntype A (a: int)\nmethod A() -> ()", "line 3: A is already declared in line 2"),
        ("interface a.b\nmethod M(a, b) -> ()", "must be fields with types"),
        ("interface a.b\nmethod M() ()", "expected '->'"),
        ("interface a.b\ntype A (a: int", "found the end"),
        ("interface a.b\n;", "';' has no meaning"),
        ("interface a.b\nstruct A ()", "expected type, method or error"),
        ("interface a.b\ntype A (_a: int)", "expected a field name"),
        ("interface a.b\ntype A (a: " + "(a: " * 40 + "int" + ")" * 41, "levels of nesting"),
        ("interface a.b\ntype A (a: " + "[]" * 40 + "int)", "levels of nesting"),
    ],
)
def test_a_wrong_file_is_refused_with_line_and_finding(text: str, finding: str) -> None:
    with pytest.raises(BadInterfaceError, match=finding):
        parse_interface(text)


def test_a_good_value_is_accepted_and_integers_become_floats_where_asked(interface: Interface) -> None:
    accepted = accept(interface, good())
    assert accepted == good()
    assert [type(size) for size in accepted["sizes"]] == [float, type(None), float]


def test_an_absent_optional_field_of_a_request_is_none(interface: Interface) -> None:
    value = {**good(), "at": {"x": 1}}
    assert accept(interface, value)["at"] == {"x": 1, "y": None}


def test_none_is_left_out_of_a_reply(interface: Interface) -> None:
    value = {**good(), "at": {"x": 1, "y": None}}
    assert accept(interface, value, Direction.REPLY)["at"] == {"x": 1}


def test_a_field_that_a_newer_service_added_is_dropped_from_its_answer(interface: Interface) -> None:
    assert accept(interface, {**good(), "added": 1}, Direction.ANSWER) == good()


@pytest.mark.parametrize("direction", [Direction.REQUEST, Direction.REPLY])
def test_an_unknown_field_is_refused_in_requests_and_own_replies(
    interface: Interface, direction: Direction
) -> None:
    with pytest.raises(ShapeError, match=r"at\.z: the interface has no such field"):
        accept(interface, {**good(), "at": {"x": 1, "z": 1}}, direction)


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("at", {"x": True}, "at.x: expected int, found bool"),
        ("at", {"x": 1.0}, "at.x: expected int, found float"),
        ("at", {"x": 2**63}, "at.x: an integer beyond 64 bit"),
        ("at", {}, "at.x: missing"),
        ("at", [1], "at: expected an object, found an array"),
        ("color", "pink", "color: expected one of red, green, blue, found 'pink'"),
        ("color", 1, "color: expected one of"),
        ("tags", {"a": 1}, r"tags\[a\]: expected string, found int"),
        ("tags", ["a"], "tags: expected a map"),
        ("tags", {1: "a"}, "tags: expected a map"),
        ("sizes", [1.5, "x"], r"sizes\[1\]: expected float"),
        ("sizes", [10**400], r"sizes\[0\]: a number beyond 64 bit"),
        ("sizes", [float("inf")], "not finite"),
        ("sizes", "abc", "sizes: expected an array, found 'abc'"),
        ("any", 5, "any: expected object, found int"),
        ("nested", {"on": 1}, "nested.on: expected bool, found int"),
        ("nested", None, "nested: missing"),
    ],
)
def test_a_value_of_another_shape_is_refused_by_name(
    interface: Interface, field: str, value: Any, where: str
) -> None:
    with pytest.raises(ShapeError, match=where):
        accept(interface, {**good(), field: value})


def test_a_recursive_type_is_checked_to_its_leaves(interface: Interface) -> None:
    tree = {"value": "a", "children": [{"value": "b", "children": [{"value": 1, "children": []}]}]}
    reply = {"count": 1, "kind": "open", "list": [], "tree": tree}
    with pytest.raises(ShapeError, match=r"tree\.children\[0\]\.children\[0\]\.value"):
        shape(interface, interface.methods["Draw"].reply, reply, Direction.REPLY)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(good(), json_values)))
def test_any_json_is_accepted_or_refused_but_nothing_else_happens(value: dict[str, Any]) -> None:
    interface = parse_interface(TEXT)
    try:
        accept(interface, {**good(), **value})
    except ShapeError:
        return


@given(st.text(alphabet="interface a.b\n()type:,?[]->AB#", max_size=80))
def test_any_text_parses_or_is_a_bad_interface(text: str) -> None:
    try:
        parse_interface("interface a.b\n" + text)
    except BadInterfaceError:
        return
