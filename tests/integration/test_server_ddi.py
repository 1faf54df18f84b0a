"""The device listener of the real server process: the DDI protocol from the offer to the end of an action."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.sim.repository import PRODUCT, TestRepository
from tests.sim.server_process import Answer, Client, ServerProcess, base_path, started

pytestmark = pytest.mark.integration
REPOSITORY_ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = REPOSITORY_ROOT.parent / "shared" / "reference" / "hawkbit-ddi-openapi.json"


@dataclass
class World:
    server: ServerProcess
    release_id: int
    release_path: str
    number: int = 0

    def device(self) -> tuple[str, Client]:
        self.number += 1
        serial = f"DDI-{self.number:05d}"
        return serial, self.server.enroll(serial)

    def deploy(self, *serials: str, **options: Any) -> tuple[int, int]:
        """Deployment and first action of a new deployment."""
        body = {"release_id": self.release_id, "device_ids": list(serials), **options}
        answer = self.server.api("POST", "/api/v1/deployments", body)
        assert answer.status == 201, answer
        return answer.json["id"], answer.json["actions"][0]["id"]

    def actions(self, serial: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.server.api("GET", f"/api/v1/devices/{serial}/actions").json[
            "items"
        ]
        return items


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("ddi")
    repository = TestRepository(directory / "desk")
    made = repository.add_release(b"\x11" * 65536, "2.0.0", 2)
    with started(directory, repository_dir=str(repository.metadata.parent)) as server:
        answer = server.api("POST", "/api/v1/releases", {"product": PRODUCT, "version": "2.0.0"})
        assert answer.status == 201, answer
        assert answer.json["digest"] == made.digest
        assert answer.json["sequence"] == 2
        yield World(server, answer.json["id"], made.path)


def path_of(href: str) -> str:
    return re.sub(r"^https://[^/]+", "", href)


def feedback(execution: str, finished: str = "none", **status: Any) -> dict[str, Any]:
    return {"status": {"execution": execution, "result": {"finished": finished}, **status}}


def test_a_new_device_is_asked_for_its_inventory_and_offered_nothing(world: World) -> None:
    serial, device = world.device()
    answer = device.request("GET", base_path(serial))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/hal+json"
    assert answer.json["config"]["polling"]["sleep"] == "00:00:01"
    assert set(answer.json["_links"]) == {"configData", "tw:telemetry", "tw:audit"}


def test_links_carry_the_configured_origin_whatever_the_host_header_says(world: World) -> None:
    serial, device = world.device()
    answer = device.request("GET", base_path(serial), headers={"Host": "evil.example"})
    assert (
        answer.json["_links"]["configData"]["href"]
        == f"{world.server.device_origin}{base_path(serial)}/configData"
    )


def test_an_unchanged_base_answer_is_304(world: World) -> None:
    serial, device = world.device()
    tag = device.request("GET", base_path(serial)).headers["etag"]
    again = device.request("GET", base_path(serial), headers={"If-None-Match": tag})
    assert (again.status, again.body) == (304, b"")


def test_inventory_is_stored_and_not_asked_for_again(world: World) -> None:
    serial, device = world.device()
    body = {"mode": "merge", "data": {"release": "1.0.0", "slot": "A"}, "status": {"ignored": True}}
    assert device.request("PUT", f"{base_path(serial)}/configData", body).status == 200
    assert "configData" not in device.request("GET", base_path(serial)).json["_links"]
    shown = world.server.api("GET", f"/api/v1/devices/{serial}").json
    assert shown["attributes"] == {"release": "1.0.0", "slot": "A"}
    assert (shown["release"], shown["slot"]) == ("1.0.0", "A")


def test_an_update_goes_from_offer_to_success(world: World) -> None:
    serial, device = world.device()
    _, action = world.deploy(serial, forced=True)
    offered = device.request("GET", base_path(serial)).json["_links"]["deploymentBase"]["href"]
    answer = device.request("GET", path_of(offered))
    assert answer.status == 200
    document = answer.json
    assert document["id"] == str(action)
    assert (document["deployment"]["download"], document["deployment"]["update"]) == ("forced", "forced")
    (chunk,) = document["deployment"]["chunks"]
    assert (chunk["part"], chunk["name"], chunk["version"]) == ("os", PRODUCT, "2.0.0")
    assert chunk["metadata"] == [{"key": "tidewaiter.release", "value": world.release_path}]
    route = f"{base_path(serial)}/deploymentBase/{action}/feedback"
    for step in ("proceeding", "download", "downloaded", "scheduled", "resumed"):
        assert device.request("POST", route, feedback(step)).status == 200
    assert world.actions(serial)[0]["state"] == "RUNNING"
    assert device.request("POST", route, feedback("closed", "success")).status == 200
    done = world.actions(serial)[0]
    assert done["state"] == "FINISHED"
    assert [row["execution"] for row in done["history"]][-1] == "closed"
    links = device.request("GET", base_path(serial)).json["_links"]
    assert "deploymentBase" not in links
    assert path_of(links["installedBase"]["href"]) == f"{base_path(serial)}/installedBase/{action}"


def test_a_failure_keeps_the_error_code_of_the_device(world: World) -> None:
    serial, device = world.device()
    _, action = world.deploy(serial)
    route = f"{base_path(serial)}/deploymentBase/{action}/feedback"
    failed = feedback("closed", "failure", code=7, details=["updater.image-mismatch", "chunk 3\x1b[2J"])
    assert device.request("POST", route, failed).status == 200
    done = world.actions(serial)[0]
    assert (done["state"], done["code"], done["detail"]) == ("ERROR", 7, "updater.image-mismatch")
    assert "\x1b" not in done["history"][0]["details"][1]


def test_feedback_after_the_end_is_410(world: World) -> None:
    serial, device = world.device()
    _, action = world.deploy(serial)
    route = f"{base_path(serial)}/deploymentBase/{action}/feedback"
    assert device.request("POST", route, feedback("closed", "success")).status == 200
    answer = device.request("POST", route, feedback("closed", "success"))
    assert (answer.status, answer.json["code"]) == (410, "action.closed")


def test_feedback_delivered_twice_is_stored_once(world: World) -> None:
    serial, device = world.device()
    _, action = world.deploy(serial)
    route = f"{base_path(serial)}/deploymentBase/{action}/feedback"
    report = feedback("download", details=["10 %"]) | {"timestamp": 1_795_000_000_000}
    assert [device.request("POST", route, report).status for _ in range(3)] == [200, 200, 200]
    assert len(world.actions(serial)[0]["history"]) == 1


def test_an_action_that_waits_for_confirmation_is_hidden_until_it_is_confirmed(world: World) -> None:
    serial, device = world.device()
    _, action = world.deploy(serial, confirm=True)
    links = device.request("GET", base_path(serial)).json["_links"]
    assert "deploymentBase" not in links
    assert device.request("GET", f"{base_path(serial)}/deploymentBase/{action}").status == 404
    early = device.request(
        "POST", f"{base_path(serial)}/deploymentBase/{action}/feedback", feedback("proceeding")
    )
    assert early.status == 404
    asked = device.request("GET", path_of(links["confirmationBase"]["href"]))
    assert asked.json["confirmation"]["chunks"][0]["version"] == "2.0.0"
    route = f"{base_path(serial)}/confirmationBase/{action}/feedback"
    assert device.request("POST", route, {"confirmation": "denied", "details": ["not now"]}).status == 200
    assert world.actions(serial)[0]["state"] == "WAIT_CONFIRM"
    assert [device.request("POST", route, {"confirmation": "confirmed"}).status for _ in range(2)] == [
        200,
        200,
    ]
    assert "deploymentBase" in device.request("GET", base_path(serial)).json["_links"]


def test_a_device_cannot_switch_confirmation_off(world: World) -> None:
    serial, device = world.device()
    route = f"{base_path(serial)}/confirmationBase/activateAutoConfirm"
    answer = device.request("POST", route, {"initiator": "x"})
    assert (answer.status, answer.json["code"]) == (403, "device.auto-confirm")
    assert (
        device.request("GET", f"{base_path(serial)}/confirmationBase").json["autoConfirm"]["active"] is False
    )


def test_a_canceled_deployment_is_offered_as_cancel_and_ends(world: World) -> None:
    serial, device = world.device()
    deployment, action = world.deploy(serial)
    assert device.request("GET", f"{base_path(serial)}/deploymentBase/{action}").status == 200
    assert world.server.api("POST", f"/api/v1/deployments/{deployment}/cancel").status == 200
    links = device.request("GET", base_path(serial)).json["_links"]
    assert "deploymentBase" not in links
    answer = device.request("GET", path_of(links["cancelAction"]["href"]))
    assert answer.json == {"id": str(action), "cancelAction": {"stopId": str(action)}}
    assert device.request("GET", f"{base_path(serial)}/deploymentBase/{action}").status == 404
    route = f"{base_path(serial)}/cancelAction/{action}/feedback"
    assert device.request("POST", route, feedback("closed", "success")).status == 200
    assert world.actions(serial)[0]["state"] == "CANCELED"


def test_a_cancel_that_the_device_rejects_lets_the_action_go_on(world: World) -> None:
    serial, device = world.device()
    deployment, action = world.deploy(serial)
    device.request("GET", f"{base_path(serial)}/deploymentBase/{action}")
    world.server.api("POST", f"/api/v1/deployments/{deployment}/cancel")
    route = f"{base_path(serial)}/cancelAction/{action}/feedback"
    assert device.request("POST", route, feedback("rejected")).status == 200
    assert "deploymentBase" in device.request("GET", base_path(serial)).json["_links"]


def test_a_newer_deployment_waits_until_the_older_is_canceled(world: World) -> None:
    serial, device = world.device()
    _, first = world.deploy(serial)
    _, second = world.deploy(serial)
    links = device.request("GET", base_path(serial)).json["_links"]
    assert path_of(links["cancelAction"]["href"]).endswith(f"/{first}")
    assert device.request("GET", f"{base_path(serial)}/deploymentBase/{second}").status == 404
    device.request(
        "POST", f"{base_path(serial)}/cancelAction/{first}/feedback", feedback("closed", "success")
    )
    links = device.request("GET", base_path(serial)).json["_links"]
    assert f"/deploymentBase/{second}?c=" in links["deploymentBase"]["href"]


def test_a_changed_window_changes_the_link_and_the_deployment(world: World) -> None:
    serial, device = world.device()
    deployment, action = world.deploy(serial, window="unavailable", forced=True)
    before = device.request("GET", base_path(serial)).json["_links"]["deploymentBase"]["href"]
    closed = device.request("GET", path_of(before)).json["deployment"]
    assert (closed["update"], closed["maintenanceWindow"]) == ("skip", "unavailable")
    changed = world.server.api("PATCH", f"/api/v1/deployments/{deployment}", {"window": "available"})
    assert (changed.status, changed.json["window"]) == (200, "available")
    after = device.request("GET", base_path(serial)).json["_links"]["deploymentBase"]["href"]
    assert after != before
    opened = device.request("GET", path_of(after)).json["deployment"]
    assert (opened["update"], opened["maintenanceWindow"]) == ("forced", "available")
    world.server.api("PATCH", f"/api/v1/deployments/{deployment}", {"window": None})
    document = device.request("GET", f"{base_path(serial)}/deploymentBase/{action}").json
    assert "maintenanceWindow" not in document["deployment"]


def test_history_is_given_when_asked_for(world: World) -> None:
    serial, device = world.device()
    _, action = world.deploy(serial)
    route = f"{base_path(serial)}/deploymentBase/{action}"
    device.request("POST", f"{route}/feedback", feedback("download", details=["halfway"]))
    assert "actionHistory" not in device.request("GET", route).json
    answer = device.request("GET", f"{route}?actionHistory=-1").json
    assert answer["actionHistory"] == {"status": "RUNNING", "messages": ["halfway"]}


def test_artifacts_belong_to_the_devices_own_action(world: World) -> None:
    serial, device = world.device()
    _, stranger = world.device()
    _, action = world.deploy(serial)
    document = device.request("GET", f"{base_path(serial)}/deploymentBase/{action}").json
    (artifact,) = document["deployment"]["chunks"][0]["artifacts"]
    path = path_of(artifact["_links"]["download"]["href"])
    answer = device.request("GET", path)
    assert (answer.status, len(answer.body)) == (200, artifact["size"])
    assert answer.headers["etag"] == f'"{artifact["hashes"]["sha256"]}"'
    sums = device.request("GET", path_of(artifact["_links"]["md5sum"]["href"]))
    assert sums.body.decode() == f"{artifact['hashes']['md5']}  release.json\n"
    own = path.replace(serial, f"DDI-{world.number:05d}")
    assert stranger.request("GET", own).status == 404


def test_telemetry_is_stored_with_the_last_snapshot_as_the_latest(world: World) -> None:
    serial, device = world.device()
    body = {"snapshots": [{"n": 1}, {"n": 2}], "dropped": 0}
    answer = device.request("POST", f"{base_path(serial)}/tw/telemetry", body)
    assert (answer.status, answer.body) == (204, b"")
    shown = world.server.api("GET", f"/api/v1/devices/{serial}/telemetry").json
    assert shown["latest"]["snapshot"] == {"n": 2}
    assert [item["snapshot"]["n"] for item in shown["items"]] == [2, 1]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"<html>blocked</html>", "not JSON"),
        (
            b'{"status":{"execution":"closed","execution":"closed","result":{"finished":"none"}}}',
            "stands twice",
        ),
        (b'{"status":NaN}', "NaN"),
        (b'{"status":{"execution":"\\u0000","result":{"finished":"none"}}}', "NUL"),
        (b'{"status":{"execution":"explode","result":{"finished":"none"}}}', "explode"),
        (b'{"status":{"execution":"closed"}}', "status.result"),
        (b'{"status":{"execution":"closed","result":{"finished":"none"},"code":99999999999}}', "32-bit"),
        (b"[" * 40 + b"]" * 40, "nested"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_malformed_report_is_400_and_changes_nothing(world: World, body: bytes, what: str) -> None:
    serial, device = world.device()
    _, action = world.deploy(serial)
    answer = device.request("POST", f"{base_path(serial)}/deploymentBase/{action}/feedback", body)
    assert (answer.status, answer.json["code"]) == (400, "request.malformed")
    assert what in answer.json["message"]
    assert world.actions(serial)[0]["state"] == "PENDING"


def test_an_oversized_body_is_413_also_when_its_length_is_not_announced(world: World) -> None:
    serial, device = world.device()
    answer = device.request("POST", f"{base_path(serial)}/tw/telemetry", iter([b"x" * 16384] * 5))
    assert (answer.status, answer.json["code"]) == (413, "request.too-large")
    assert answer.headers["connection"] == "close"


def test_more_than_64_attributes_are_refused(world: World) -> None:
    serial, device = world.device()
    many = {f"k{number}": "v" for number in range(40)}
    assert device.request("PUT", f"{base_path(serial)}/configData", {"data": many}).status == 200
    more = {f"m{number}": "v" for number in range(40)}
    answer = device.request("PUT", f"{base_path(serial)}/configData", {"mode": "merge", "data": more})
    assert answer.status == 400
    assert len(world.server.api("GET", f"/api/v1/devices/{serial}").json["attributes"]) == 40


def test_a_device_that_asks_too_fast_is_429_and_may_come_back(world: World) -> None:
    serial, device = world.device()
    answers = [device.request("GET", base_path(serial)) for _ in range(120)]
    slowed = [answer for answer in answers if answer.status == 429]
    assert slowed
    assert slowed[0].headers["retry-after"] == "1"
    assert device.request("GET", "/tuf/metadata/timestamp.json").status == 200


class Published:
    """The public OpenAPI document as a judge of answers."""

    UNDOCUMENTED = frozenset({304, 404, 413})
    """hawkBit answers these too (its document leaves them out); 304 follows from the ETag."""

    def __init__(self) -> None:
        if not DOCUMENT.is_file():
            pytest.skip(
                f"{DOCUMENT.name} is not beside this repository (../shared/reference): nothing to compare with"
            )
        import json

        from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

        self._validator = Draft202012Validator
        self._document = json.loads(DOCUMENT.read_text())
        # The document writes a format where a regular expression belongs.
        self._document["components"]["schemas"]["DdiPolling"]["properties"]["sleep"]["pattern"] = (
            r"^\d\d:\d\d:\d\d$"
        )
        self.seen: set[tuple[str, str, int]] = set()

    def judge(self, method: str, path: str, answer: Answer) -> None:
        template = self._template(path.partition("?")[0])
        responses = self._document["paths"][template][method.lower()]["responses"]
        self.seen.add((method, template, answer.status))
        if str(answer.status) not in responses:
            assert answer.status in self.UNDOCUMENTED, (method, path, answer)
            return
        content = responses[str(answer.status)].get("content", {})
        kind = answer.headers.get("content-type", "").partition(";")[0]
        if not answer.body or not content or "*/*" in content:
            assert answer.status == 200, (method, path, answer)
            return
        assert kind in content, (method, path, kind)
        schema = content[kind].get("schema")
        if schema is not None:
            self._validator(schema | {"components": self._document["components"]}).validate(answer.json)

    def unasked(self) -> set[tuple[str, str]]:
        """Routes of the document that no request went to."""
        routes = {
            (method.upper(), path) for path, found in self._document["paths"].items() for method in found
        }
        return routes - {(method, path) for method, path, _ in self.seen}

    def _template(self, path: str) -> str:
        for template in sorted(self._document["paths"], key=lambda one: (one.count("{"), -len(one))):
            if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template), path):
                return str(template)
        raise AssertionError(f"{path} is not in the document")


def test_every_answer_has_the_shape_of_the_published_document(world: World) -> None:
    published = Published()
    serial, device = world.device()
    base = base_path(serial)

    def check(method: str, path: str, body: object = None, **headers: str) -> Answer:
        answer = device.request(method, path, body, headers=headers)
        published.judge(method, path, answer)
        return answer

    check("GET", base)
    check("PUT", f"{base}/configData", {"data": {"a": "b"}})
    check("PUT", f"{base}/configData", b"{")
    check("PUT", f"{base}/configData", b"a=b", **{"Content-Type": "text/plain"})
    deployment, action = world.deploy(serial, confirm=True)
    check("GET", f"{base}/confirmationBase")
    check("GET", f"{base}/confirmationBase/{action}?actionHistory=-1")
    check("GET", f"{base}/confirmationBase/{2**30}")
    check("POST", f"{base}/confirmationBase/activateAutoConfirm", {"initiator": "x"})
    check("POST", f"{base}/confirmationBase/deactivateAutoConfirm")
    check("POST", f"{base}/confirmationBase/{action}/feedback", {"confirmation": "maybe"})
    check("POST", f"{base}/confirmationBase/{action}/feedback", {"confirmation": "confirmed"})
    check("GET", base)
    document = check("GET", f"{base}/deploymentBase/{action}").json
    check("GET", f"{base}/deploymentBase/{action}?actionHistory=x")
    check(
        "POST", f"{base}/deploymentBase/{action}/feedback", feedback("download", progress={"cnt": 1, "of": 3})
    )
    check("GET", f"{base}/deploymentBase/{action}?actionHistory=10")
    check("GET", f"{base}/deploymentBase/{action}", Accept="text/html")
    check("POST", f"{base}/deploymentBase/{action}/feedback", {"status": {}})
    module = path_of(document["deployment"]["chunks"][0]["artifacts"][0]["_links"]["download"]["href"])
    check("GET", module)
    check("GET", f"{module}.MD5SUM")
    check("GET", module.rpartition("/")[0])
    check("GET", f"{module}x")
    world.server.api("POST", f"/api/v1/deployments/{deployment}/cancel")
    check("GET", base)
    check("GET", f"{base}/cancelAction/{action}")
    check("POST", f"{base}/cancelAction/{action}/feedback", {"status": {"execution": 3}})
    check("POST", f"{base}/cancelAction/{action}/feedback", feedback("rejected"))
    check("POST", f"{base}/deploymentBase/{action}/feedback", feedback("closed", "success"))
    check("POST", f"{base}/deploymentBase/{action}/feedback", feedback("closed", "success"))
    check("GET", f"{base}/installedBase/{action}?actionHistory=5")
    check("PUT", f"{base}/installedBase", {"name": PRODUCT, "version": "2.0.0"})
    check("PUT", f"{base}/installedBase", {"name": PRODUCT, "version": "9"})
    check("PUT", f"{base}/installedBase", {"name": 3})
    check("GET", f"{base}/cancelAction/{action}")
    assert published.unasked() == set()


@pytest.mark.parametrize("digits", [19, 30, 5000])
def test_an_action_number_beyond_every_integer_is_404_and_no_accident(world: World, digits: int) -> None:
    serial, device = world.device()
    number = "9" * digits
    for route in (
        f"deploymentBase/{number}",
        f"cancelAction/{number}",
        f"softwaremodules/{number}/artifacts",
    ):
        assert device.request("GET", f"{base_path(serial)}/{route}").status == 404
    path = f"{base_path(serial)}/deploymentBase/{number}/feedback"
    assert device.request("POST", path, feedback("proceeding")).status == 404
