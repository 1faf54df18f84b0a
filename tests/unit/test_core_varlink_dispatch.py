"""Method resolution, authorization before parameters, and which errors may leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tidewaiter_core.errors import DeadlineError
from tidewaiter_core.varlink import Call, Handler, Peer, VarlinkError
from tidewaiter_core.varlink.dispatch import Dispatcher
from tidewaiter_core.varlink.idl import ShapeError

INTERLOCK = "io.tidewaiter.Interlock"
PEER = Peer(pid=1, uid=1000, gid=1000, groups=frozenset({1000}))


def nothing(call: Call) -> None:
    return None


def refuse(peer: Peer, method: str) -> None:
    raise VarlinkError("org.varlink.service.PermissionDenied")


def allow(peer: Peer, method: str) -> None:
    return None


def dispatcher(handlers: Mapping[str, Handler] | None = None, *, authorize: Any = allow) -> Dispatcher:
    chosen: Mapping[str, Handler] = {"Check": nothing, "GetLease": nothing} if handlers is None else handlers
    return Dispatcher({INTERLOCK: chosen}, authorize=authorize, product="test")


@pytest.mark.parametrize(
    ("method", "error", "parameters"),
    [
        ("io.tidewaiter.Relay.Fetch", "InterfaceNotFound", {"interface": "io.tidewaiter.Relay"}),
        (f"{INTERLOCK}.Nope", "MethodNotFound", {"method": f"{INTERLOCK}.Nope"}),
        (f"{INTERLOCK}.Hold", "MethodNotImplemented", {"method": f"{INTERLOCK}.Hold"}),
        (".", "InterfaceNotFound", {"interface": ""}),
    ],
)
def test_what_cannot_be_called_is_answered_with_the_standard_error(
    method: str, error: str, parameters: dict[str, str]
) -> None:
    with pytest.raises(VarlinkError) as caught:
        dispatcher().resolve(method)
    assert caught.value.name == f"org.varlink.service.{error}"
    assert caught.value.parameters == parameters


def test_a_handler_for_a_method_the_file_does_not_have_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="no method Hodl"):
        dispatcher({"Hodl": nothing})


def test_authorization_comes_before_the_parameters_are_looked_at() -> None:
    service = dispatcher(authorize=refuse)
    with pytest.raises(VarlinkError) as caught:
        service.accept(service.resolve(f"{INTERLOCK}.Check"), {"wrong": 1}, PEER)
    assert caught.value.name == "org.varlink.service.PermissionDenied"


def test_introspection_needs_no_authorization() -> None:
    service = dispatcher(authorize=refuse)
    bound = service.resolve("org.varlink.service.GetInterfaceDescription")
    parameters = service.accept(bound, {"interface": INTERLOCK}, PEER)
    reply = bound.handler(Call(parameters=parameters, peer=PEER))
    assert isinstance(reply, dict)
    assert f"interface {INTERLOCK}" in bound.reply(reply)["description"]


def test_wrong_parameters_name_the_field() -> None:
    service = dispatcher()
    with pytest.raises(VarlinkError) as caught:
        service.accept(service.resolve(f"{INTERLOCK}.Check"), {"purpose": 7}, PEER)
    assert caught.value.name == "org.varlink.service.InvalidParameter"
    assert caught.value.parameters == {"parameter": "purpose"}


def test_a_reply_that_does_not_fit_is_a_bug_and_not_an_error_reply() -> None:
    bound = dispatcher().resolve(f"{INTERLOCK}.Check")
    with pytest.raises(ShapeError, match="decision: missing"):
        bound.reply({})


def test_a_declared_error_is_passed_on_with_checked_parameters() -> None:
    reply = dispatcher().error(VarlinkError(f"{INTERLOCK}.Busy", {"holder": "updater"}))
    assert reply == {"error": f"{INTERLOCK}.Busy", "parameters": {"holder": "updater"}}


def test_error_parameters_that_do_not_fit_are_a_bug() -> None:
    with pytest.raises(ShapeError, match="holder"):
        dispatcher().error(VarlinkError(f"{INTERLOCK}.Busy", {"holder": 5}))


@pytest.mark.parametrize("name", [f"{INTERLOCK}.Undeclared", "io.tidewaiter.Updater.Busy", "nonsense"])
def test_an_undeclared_error_is_a_bug(name: str) -> None:
    with pytest.raises(ValueError, match="no interface of this socket declares it"):
        dispatcher().error(VarlinkError(name))


def test_any_other_error_of_ours_travels_with_code_message_and_retryable() -> None:
    reply = dispatcher().error(DeadlineError("link: no answer in 2 s"))
    assert reply["error"] == "io.tidewaiter.Failed"
    assert reply["parameters"] == {
        "code": "core.deadline",
        "message": "link: no answer in 2 s",
        "retryable": True,
    }
    received = VarlinkError(reply["error"], reply["parameters"])
    assert (received.code, received.retryable) == ("core.deadline", True)
    assert str(received) == "io.tidewaiter.Failed: link: no answer in 2 s"
