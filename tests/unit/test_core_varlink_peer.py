"""Peer credentials as the kernel gives them, and the rules on top."""

from __future__ import annotations

import os
import socket

import pytest
from tidewaiter_core.errors import ConfigError
from tidewaiter_core.varlink import (
    Peer,
    VarlinkError,
    allow_any,
    allow_group,
    allow_users,
    group_id,
    peer_of,
    user_id,
)


def peer(uid: int = 1000, *groups: int) -> Peer:
    return Peer(pid=1, uid=uid, gid=uid, groups=frozenset({uid, *groups}))


def test_credentials_are_those_of_the_connecting_process() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = peer_of(ours)
    assert (found.pid, found.uid, found.gid) == (os.getpid(), os.getuid(), os.getgid())
    assert found.groups == {os.getgid(), *os.getgroups()}


def test_names_and_numbers_are_both_understood() -> None:
    assert user_id("root") == user_id("0") == 0
    assert group_id("root") == group_id("0") == 0


@pytest.mark.parametrize("name", ["no-such-name", "", "-1", "²"])
def test_an_unknown_name_is_a_configuration_error_that_names_it(name: str) -> None:
    with pytest.raises(ConfigError, match=f"user {name!r}"):
        user_id(name)
    with pytest.raises(ConfigError, match=f"group {name!r}"):
        group_id(name)


def test_only_the_named_users_pass_and_root_is_no_exception() -> None:
    rule = allow_users("1000", "1001")
    rule(peer(1001), "a.B")
    for uid in (0, 1002):
        with pytest.raises(VarlinkError, match="PermissionDenied"):
            rule(peer(uid), "a.B")


def test_a_supplementary_group_is_enough() -> None:
    rule = allow_group("50")
    rule(peer(1000, 50), "a.B")
    with pytest.raises(VarlinkError, match="PermissionDenied"):
        rule(peer(1000, 51), "a.B")


def test_one_satisfied_rule_of_several_is_enough() -> None:
    rule = allow_any(allow_users("0"), allow_group("50"))
    rule(peer(0), "a.B")
    rule(peer(7, 50), "a.B")
    with pytest.raises(VarlinkError, match="PermissionDenied"):
        rule(peer(7), "a.B")


def test_no_rule_at_all_allows_nobody() -> None:
    with pytest.raises(VarlinkError, match="PermissionDenied"):
        allow_any()(peer(0), "a.B")
