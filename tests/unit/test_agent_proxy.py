"""Reading the site's proxy routes."""

from __future__ import annotations

import pytest
from tidewaiter_agent.errors import ProxyError
from tidewaiter_agent.proxy import Route, parse_routes


def test_routes_are_kept_in_their_order() -> None:
    assert parse_routes(["PROXY proxy.hospital.example:3128", "DIRECT"]) == (
        Route("PROXY", "proxy.hospital.example", 3128),
        Route("DIRECT"),
    )


def test_ipv6_proxy_is_read_without_its_brackets() -> None:
    assert parse_routes(["PROXY [2001:db8::1]:3128"])[0].host == "2001:db8::1"


@pytest.mark.parametrize(
    "entry",
    ["", "PROXY", "PROXY host", "PROXY host:0", "PROXY host:65536", "PROXY host:٣", "PROXY a b:1", "SOCKS host:1",
     "PROXY user:pw@host:1", "PROXY host:1\r\nX: y"],
)  # fmt: skip
def test_route_that_is_not_usable_is_refused_and_named(entry: str) -> None:
    with pytest.raises(ProxyError, match=r"network.proxy_route"):
        parse_routes([entry])


def test_no_route_at_all_is_refused() -> None:
    with pytest.raises(ProxyError, match="empty"):
        parse_routes([])
