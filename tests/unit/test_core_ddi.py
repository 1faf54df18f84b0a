"""Poll protocol: answers read strictly, documents as the public OpenAPI file has them, links that stay at home."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidewaiter_core import ddi
from tidewaiter_core.ddi import (
    BadAnswerError,
    BadJsonError,
    ForeignLinkError,
    Handling,
    UnusableDeploymentError,
)
from tidewaiter_core.errors import TidewaiterError

HREF = "https://service.vendor.example/default/controller/v1/INJ-000123/deploymentBase/7?c=12"


def body(document: Any) -> bytes:
    return json.dumps(document).encode()


def base(**changes: Any) -> bytes:
    document = {
        "config": {"polling": {"sleep": "00:05:00"}},
        "_links": {"deploymentBase": {"href": HREF}, "tw:telemetry": {"href": "/t"}},
    }
    return body({**document, **changes})


def chunk(**changes: Any) -> dict[str, Any]:
    return {
        "part": "os",
        "name": "pump",
        "version": "2.4.1",
        "artifacts": [
            {
                "filename": "release.json",
                "hashes": {"sha1": "0" * 40},
                "size": 12,
                "_links": {"download": {"href": "https://h/a"}},
            }
        ],
        "metadata": [{"key": "tidewaiter.release", "value": "releases/pump/2.4.1/release.json"}],
        **changes,
    }


def deployment(*chunks: dict[str, Any], **changes: Any) -> bytes:
    content = {"download": "forced", "update": "attempt", "chunks": list(chunks) or [chunk()], **changes}
    return body({"id": "7", "deployment": content, "actionHistory": {"status": "RUNNING", "messages": []}})


# -- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (
            b"<!DOCTYPE html><html><head><title>Access denied</title>",
            "an HTML page titled 'Access denied', as a proxy",
        ),
        (b"\r\n  <HTML><body>no</body></HTML>", "an HTML page, as a proxy or portal sends it"),
        (b"<?xml version='1.0'?><error/>", "XML or HTML"),
        (b"", "an empty body"),
        (b"   \n", "an empty body"),
        (b"\x1f\x8b\x08\x00", "a compressed body"),
        (b"OK", "2 bytes starting with b'OK'"),
        (b"[]", "expected a JSON object, found a JSON list"),
        (b"null", "found a JSON NoneType"),
        (b'{"a":1,"a":2}', "stands twice"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":' * 20 + b"1" + b"}" * 20, "deeper than 16 levels"),
        (b"[" * 100_000, "deeper than 16 levels"),
        (b'{"a":"' + b"x" * 262_144 + b'"}', "the limit is 262144"),
    ],
)
def test_what_is_not_json_is_refused_and_named(data: bytes, finding: str) -> None:
    with pytest.raises(BadJsonError) as caught:
        ddi.parse_base(data)
    assert finding in str(caught.value)
    assert caught.value.code == "net.bad-json"


def test_the_title_of_a_block_page_is_shown_short_and_escaped() -> None:
    with pytest.raises(BadJsonError) as caught:
        ddi.parse_base(b"<html><title>\x1b[31m" + b"x" * 150 + b"</title>")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


@settings(max_examples=60)
@given(st.binary(max_size=100))
def test_any_bytes_are_an_answer_or_an_error_of_ours(data: bytes) -> None:
    for parse in (ddi.parse_base, ddi.parse_deployment, ddi.parse_cancel, ddi.parse_confirmation_base):
        try:
            parse(data)
        except TidewaiterError:
            continue


# -- base poll --------------------------------------------------------------------------------------------------------


def test_the_base_answer_gives_sleep_and_links() -> None:
    found = ddi.parse_base(base())
    assert found.sleep_s == 300
    assert found.links == {"deploymentBase": HREF, "tw:telemetry": "/t"}


def test_an_answer_without_config_and_links_is_an_idle_one() -> None:
    found = ddi.parse_base(b"{}")
    assert (found.sleep_s, dict(found.links)) == (300, {})


@pytest.mark.parametrize("link", [None, 5, "x", {}, {"href": None}, {"href": ""}, {"href": ["x"]}])
def test_a_link_without_a_usable_href_is_left_out(link: Any) -> None:
    assert dict(ddi.parse_base(base(_links={"deploymentBase": link})).links) == {}


@pytest.mark.parametrize("changes", [{"config": []}, {"config": {"polling": "x"}}, {"_links": []},
                                     {"_links": {str(number): {"href": "/"} for number in range(65)}}])  # fmt: skip
def test_a_base_answer_of_another_shape_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadAnswerError, match="the answer is ignored") as caught:
        ddi.parse_base(base(**changes))
    assert caught.value.code == "net.bad-answer"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:00:00", 0), ("00:00:15", 15), ("00:05:00", 300), ("12:34:56", 45296), ("23:59:59", 86399)],
)
def test_a_sleep_is_read_and_written_the_same(text: str, seconds: int) -> None:
    assert ddi.parse_sleep(text) == seconds
    assert ddi.format_sleep(seconds) == text


@pytest.mark.parametrize(
    "text", ["24:00:00", "0:05:00", "00:60:00", "00:00:60", "300", "", "-1:00:00", "٠٠:٠٥:٠٠", None, 300]
)
def test_a_sleep_of_another_form_is_refused(text: object) -> None:
    with pytest.raises(BadAnswerError, match="expected HH:MM:SS"):
        ddi.parse_sleep(text)


def test_a_sleep_longer_than_a_day_is_written_as_the_longest_that_clients_read() -> None:
    assert ddi.format_sleep(10**6) == "23:59:59"
    with pytest.raises(ValueError, match="-1 s"):
        ddi.format_sleep(-1)


# -- deployment -------------------------------------------------------------------------------------------------------


def test_a_deployment_names_its_release_by_metadata() -> None:
    found = ddi.parse_deployment(deployment(maintenanceWindow="unavailable"))
    assert (found.id, found.download, found.update) == ("7", Handling.FORCED, Handling.ATTEMPT)
    assert (found.maintenance_window, found.confirming) == ("unavailable", False)
    assert found.release == ddi.ReleaseRef("pump", "2.4.1", "releases/pump/2.4.1/release.json")
    assert found.chunks[0].artifacts == {"release.json": "https://h/a"}


def test_without_metadata_the_release_is_named_by_name_and_version() -> None:
    found = ddi.parse_deployment(deployment(chunk(metadata=None, name="os-image", version="3.0+b1")))
    assert found.release.path == "releases/os-image/3.0+b1/release.json"


def test_a_confirmation_is_read_like_a_deployment_and_says_so() -> None:
    found = ddi.parse_deployment(body({"id": "7", "confirmation": {"chunks": [chunk()]}}))
    assert found.confirming
    assert found.maintenance_window is None
    assert (found.download, found.update) == (Handling.ATTEMPT, Handling.ATTEMPT)


@pytest.mark.parametrize("chunks", [[chunk(), chunk(name="other")], []])
def test_not_exactly_one_software_module_is_unusable_and_names_the_action(
    chunks: list[dict[str, Any]],
) -> None:
    with pytest.raises(UnusableDeploymentError, match="expected one software module") as caught:
        ddi.parse_deployment(body({"id": "7", "deployment": {"chunks": chunks}}))
    assert caught.value.action_id == "7"
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "releases/../../x/release.json",
        "releases/pump/../release.json",
        "releases/pump/2.4.1/release.json?x",
        "releases/pump/2.4.1/other.json",
        "/releases/pump/2.4.1/release.json",
        "https://evil.example/releases/pump/2.4.1/release.json",
        "releases/pump/2.4.1/release.json\n",
        "releases/pu mp/2.4.1/release.json",
        "releases/" + "x" * 65 + "/1/release.json",
        "",
    ],
)
def test_a_release_path_of_another_form_is_unusable(path: str) -> None:
    metadata = [{"key": "tidewaiter.release", "value": path}]
    with pytest.raises(UnusableDeploymentError, match="expected releases/<product>/<version>/release"):
        ddi.parse_deployment(deployment(chunk(metadata=metadata)))


def test_a_name_that_is_no_path_segment_is_unusable_without_metadata() -> None:
    with pytest.raises(UnusableDeploymentError):
        ddi.parse_deployment(deployment(chunk(metadata=[], name="../pump")))


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (body({"deployment": {"chunks": [chunk()]}}), "id: expected a decimal action id, found nothing"),
        (body({"id": 7, "deployment": {"chunks": [chunk()]}}), "id: expected a decimal action id, found 7"),
        (body({"id": "7/../8", "deployment": {"chunks": [chunk()]}}), "id: expected a decimal"),
        (body({"id": "٧", "deployment": {"chunks": [chunk()]}}), "id: expected a decimal"),
        (body({"id": "7"}), "deployment: expected an object, found nothing"),
        (body({"id": "7", "deployment": {}}), "deployment.chunks: expected a list"),
        (body({"id": "7", "deployment": {"chunks": [5]}}), "chunks[0]: expected an object, found 5"),
        (deployment(download="now"), "deployment.download: expected skip, attempt or forced, found 'now'"),
        (deployment(update=None), "deployment.update"),
        (deployment(maintenanceWindow="soon"), "deployment.maintenanceWindow"),
        (deployment(chunk(name="")), "chunks[0].name: expected a text"),
        (deployment(chunk(version="x" * 129)), "chunks[0].version: expected a text of 1 to 128"),
        (deployment(chunk(part=None)), "chunks[0].part"),
        (deployment(chunk(artifacts={})), "chunks[0].artifacts: expected a list"),
        (deployment(chunk(artifacts=[{"filename": "a"}, {"filename": "a"}])), "two files have the name 'a'"),
        (
            deployment(chunk(metadata=[{"key": "a", "value": "1"}, {"key": "a", "value": "2"}])),
            "'a' stands twice",
        ),
    ],
)
def test_a_deployment_of_another_shape_is_refused_by_field(data: bytes, field: str) -> None:
    with pytest.raises(BadAnswerError) as caught:
        ddi.parse_deployment(data)
    assert field in str(caught.value)


# -- confirmation and cancel ------------------------------------------------------------------------------------------


def test_a_waiting_confirmation_is_found_by_its_link() -> None:
    auto = {"active": False, "_links": {"activateAutoConfirm": {"href": "x"}}}
    found = ddi.parse_confirmation_base(
        body({"autoConfirm": auto, "_links": {"confirmationBase": {"href": HREF}}})
    )
    assert found == HREF
    assert ddi.parse_confirmation_base(body({"autoConfirm": auto, "_links": {}})) is None


def test_a_cancel_names_the_action_to_stop() -> None:
    found = ddi.parse_cancel(body({"id": "11", "cancelAction": {"stopId": "10"}}))
    assert (found.id, found.stop_id) == ("11", "10")
    assert ddi.parse_cancel(body({"cancelAction": {"stopId": "10"}})).id == "10"


@pytest.mark.parametrize("document", [{}, {"id": "1", "cancelAction": {}}, {"cancelAction": {"stopId": 10}}])
def test_a_cancel_of_another_shape_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(BadAnswerError):
        ddi.parse_cancel(body(document))


# -- reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "execution", "finished"),
    [
        ("OFFERED", "proceeding", "none"),
        ("WAIT_CONSENT", "scheduled", "none"),
        ("WAIT_WINDOW", "scheduled", "none"),
        ("TRANSFER", "download", "none"),
        ("STAGED", "downloaded", "none"),
        ("ARMED", "proceeding", "none"),
        ("TRIAL", "resumed", "none"),
        ("COMMITTED", "closed", "success"),
        ("REFUSED", "closed", "failure"),
        ("FAILED", "closed", "failure"),
        ("ROLLED_BACK", "closed", "failure"),
    ],
)
def test_each_phase_has_its_execution(phase: str, execution: str, finished: str) -> None:
    status = ddi.phase_feedback(phase)["status"]
    assert (status["execution"], status["result"]) == (execution, {"finished": finished})


def test_no_phase_is_reported_as_rejected_or_canceled_which_leaves_an_action_open() -> None:
    used = {standing.execution.value for standing in ddi.STANDING_OF_PHASE.values()}
    assert used.isdisjoint({"rejected", "canceled"})


def test_an_unknown_phase_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="'PAUSED' has no place"):
        ddi.phase_feedback("PAUSED")


def test_feedback_carries_progress_code_details_and_time() -> None:
    document = ddi.phase_feedback("TRANSFER", details=["x"], progress=(5, 10), timestamp_ms=1_700_000_000_000)
    assert document == {
        "status": {
            "execution": "download",
            "result": {"finished": "none", "progress": {"cnt": 5, "of": 10}},
            "details": ["x"],
        },
        "timestamp": 1_700_000_000_000,
    }
    assert ddi.feedback(ddi.CANCEL_DONE, code=0)["status"]["code"] == 0
    assert ddi.feedback(ddi.CANCEL_TOO_LATE)["status"]["execution"] == "rejected"


def test_progress_fits_32_bit_and_keeps_its_ratio() -> None:
    progress = ddi.phase_feedback("TRANSFER", progress=(3 * 2**32, 4 * 2**32))["status"]["result"]["progress"]
    assert progress["of"] < 2**31
    assert progress["cnt"] * 4 == progress["of"] * 3


def test_of_too_many_details_the_code_and_the_news_stay() -> None:
    details = ddi.phase_feedback("FAILED", details=["trust.expired", *map(str, range(40)), "x" * 600])[
        "status"
    ]["details"]
    assert len(details) == 20
    assert details[0] == "trust.expired"
    assert details[1] == "… 23 more"
    assert details[-1] == "x" * 511 + "…"


def test_config_data_is_strings_and_bounded() -> None:
    assert ddi.config_data({"serial": "INJ-1", "note": "x" * 200}) == {
        "mode": "merge",
        "data": {"serial": "INJ-1", "note": "x" * 127 + "…"},
    }
    with pytest.raises(ValueError, match="65 keys"):
        ddi.config_data({str(number): "" for number in range(65)})
    with pytest.raises(ValueError, match="expected a text"):
        ddi.config_data({"n": 5})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="mode 'add'"):
        ddi.config_data({}, mode="add")


def test_a_confirmation_says_yes_or_no_with_details() -> None:
    assert ddi.confirmation(confirmed=True) == {"confirmation": "confirmed", "details": []}
    assert ddi.confirmation(confirmed=False, details=["consent.denied"], code=3) == {
        "confirmation": "denied",
        "details": ["consent.denied"],
        "code": 3,
    }


# -- links ------------------------------------------------------------------------------------------------------------

ORIGIN = "https://service.vendor.example"
PREFIX = "/default/controller/v1/INJ-000123"


def check(href: str, *, path_only: bool = False, origin: str = ORIGIN) -> str:
    return ddi.check_link(href, origin=origin, tenant_prefix=PREFIX, path_only=path_only)


@pytest.mark.parametrize(
    ("href", "path"),
    [
        (HREF, f"{PREFIX}/deploymentBase/7?c=12"),
        (f"{ORIGIN}:443{PREFIX}", PREFIX),
        (f"HTTPS://SERVICE.vendor.example{PREFIX}/configData", f"{PREFIX}/configData"),
        (f"{PREFIX}/configData", f"{PREFIX}/configData"),
        (f"{ORIGIN}{PREFIX}/tw/telemetry#part", f"{PREFIX}/tw/telemetry"),
        (f"{ORIGIN}{PREFIX}/a%20b?x=%2f", f"{PREFIX}/a%20b?x=%2f"),
    ],
)
def test_a_link_of_the_configured_server_gives_path_and_query(href: str, path: str) -> None:
    assert check(href) == path


@pytest.mark.parametrize(
    "href",
    [
        f"https://evil.example{PREFIX}/configData",
        f"https://service.vendor.example.evil.example{PREFIX}/x",
        f"https://service.vendor.example@evil.example{PREFIX}/x",
        f"https://user@service.vendor.example{PREFIX}/x",
        f"http://service.vendor.example{PREFIX}/x",
        f"https://service.vendor.example:8443{PREFIX}/x",
        f"https://service.vendor.example:port{PREFIX}/x",
        f"//evil.example{PREFIX}/x",
        f"ftp://service.vendor.example{PREFIX}/x",
        f"https:{PREFIX}/x",
        "https://[::1",
        f"{ORIGIN}/other/controller/v1/INJ-000123/x",
        f"{ORIGIN}{PREFIX}4/x",
        f"{ORIGIN}{PREFIX}/../INJ-000999/x",
        f"{ORIGIN}{PREFIX}/%2e%2E/x",
        f"{ORIGIN}{PREFIX}/a%2f..%2fb",
        f"{ORIGIN}{PREFIX}/%252e%252e/x",
        f"{ORIGIN}{PREFIX}//x",
        f"{ORIGIN}{PREFIX}/a b",
        f"{ORIGIN}{PREFIX}/a\r\nHost: x",
        f"{ORIGIN}{PREFIX}\\x",
        f"{ORIGIN}{PREFIX}/ü",
        f"{PREFIX.lstrip('/')}/x",
        "",
        f"{ORIGIN}{PREFIX}/" + "x" * 2048,
    ],
)
def test_a_foreign_link_is_refused(href: str) -> None:
    with pytest.raises(ForeignLinkError, match="it is not followed") as caught:
        check(href)
    assert caught.value.code == "net.foreign-link"
    assert not caught.value.retryable


def test_path_only_drops_the_origin_but_not_the_tenant() -> None:
    assert check(f"http://hawkbit:8080{PREFIX}/configData?c=1", path_only=True) == f"{PREFIX}/configData?c=1"
    with pytest.raises(ForeignLinkError, match="expected a path below"):
        check("http://hawkbit:8080/other/configData", path_only=True)
    with pytest.raises(ForeignLinkError, match="user name"):
        check(f"http://user:pass@hawkbit{PREFIX}/x", path_only=True)


def test_a_port_in_the_configured_origin_counts() -> None:
    origin = "https://127.0.0.1:8443"
    assert check(f"{origin}{PREFIX}/x", origin=origin) == f"{PREFIX}/x"
    with pytest.raises(ForeignLinkError):
        check(f"https://127.0.0.1{PREFIX}/x", origin=origin)
