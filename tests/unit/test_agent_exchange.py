"""Rules for statuses, Retry-After and JSON answers."""

from __future__ import annotations

import pytest
from tidewaiter_agent.errors import AuthError, NetError
from tidewaiter_agent.exchange import Reply, StatusError, Verdict, expect_json, judge_status, retry_after_s

JSON = {"content-type": "application/hal+json"}


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, Verdict.DONE),
        (204, Verdict.DONE),
        (410, Verdict.DONE),
        (401, Verdict.STOP),
        (403, Verdict.STOP),
        (408, Verdict.LATER),
        (425, Verdict.LATER),
        (429, Verdict.LATER),
        (500, Verdict.LATER),
        (503, Verdict.LATER),
        (400, Verdict.DEAD),
        (404, Verdict.DEAD),
        (409, Verdict.DEAD),
        (413, Verdict.DEAD),
        (415, Verdict.DEAD),
        (422, Verdict.DEAD),
    ],
)
def test_each_status_has_one_consequence_for_an_item(status: int, verdict: Verdict) -> None:
    assert judge_status(status) is verdict


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0.0),
        ("120", 120.0),
        ("99999", 3600.0),
        ("9" * 1000, 3600.0),
        ("-5", 0.0),
        ("1.5", 0.0),
        ("soon", 0.0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", 60.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
    ],
)
def test_retry_after_is_bounded_and_garbage_is_ignored(text: str, seconds: float) -> None:
    assert retry_after_s({"retry-after": text}, 0.0) == seconds


def test_unknown_device_is_an_authentication_error_that_is_not_retried_blindly() -> None:
    with pytest.raises(AuthError) as caught:
        expect_json(Reply(status=403, headers=JSON, body=b'{"code":"device.unknown"}'), "poll", now_epoch_s=0)
    assert (caught.value.code, caught.value.retryable) == ("auth.rejected", False)


def test_revoked_device_is_told_apart_from_an_unknown_one() -> None:
    with pytest.raises(AuthError) as caught:
        expect_json(Reply(status=403, headers=JSON, body=b'{"code":"device.revoked"}'), "poll", now_epoch_s=0)
    assert caught.value.code == "auth.revoked"


def test_error_status_carries_the_wait_of_the_server() -> None:
    with pytest.raises(StatusError) as caught:
        expect_json(Reply(status=503, headers={**JSON, "retry-after": "77"}, body=b""), "poll", now_epoch_s=0)
    assert (caught.value.status, caught.value.wait_s, caught.value.code) == (503, 77.0, "net.http-503")


@pytest.mark.parametrize("content_type", ["text/html", "application/json", "", "text/plain; charset=utf-8"])
def test_page_instead_of_json_is_named_whatever_its_content_type(content_type: str) -> None:
    body = b"  <!DOCTYPE html><html><title>Blocked\x1b[31m</title>"
    with pytest.raises(NetError) as caught:
        expect_json(
            Reply(status=200, headers={"content-type": content_type}, body=body), "poll", now_epoch_s=0
        )
    assert caught.value.code == "net.bad-json"
    assert "Blocked" in str(caught.value)
    assert "\x1b" not in str(caught.value)
