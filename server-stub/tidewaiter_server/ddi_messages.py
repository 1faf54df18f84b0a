"""DDI bodies, both directions: reads what devices send, builds what they get. Pure.

Bodies are tolerant by the protocol's nature (real clients send fields of their own: unknown ones are ignored); sizes and
types of what is read are strict. Links are built from the configured origin, never from a Host header.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from tidewaiter_core.log import escape

from tidewaiter_server.actions import Action, Feedback
from tidewaiter_server.actions_rules import CONFIRMATIONS, EXECUTIONS, FINISHED, State
from tidewaiter_server.devices import ATTRIBUTE_CHARACTERS, ATTRIBUTES_LIMIT
from tidewaiter_server.errors import malformed

DETAILS_LIMIT: Final = 20
DETAIL_CHARACTERS: Final = 512
SNAPSHOTS_LIMIT: Final = 16
_MODES: Final = ("merge", "replace", "remove")
_INT32: Final = range(-(2**31), 2**31)
_OFFERED: Final = (State.PENDING, State.RETRIEVED, State.RUNNING)

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Links:
    """Addresses of one device's routes."""

    origin: str
    tenant: str
    device_id: str

    def to(self, *segments: str | int) -> str:
        path = "/".join(quote(str(segment), safe="") for segment in segments)
        base = f"{self.origin}/{self.tenant}/controller/v1/{quote(self.device_id, safe='')}"
        return f"{base}/{path}" if path else base


def base(
    links: Links,
    *,
    sleep_s: int,
    action: Action | None,
    installed: Action | None,
    config_wanted: bool,
) -> Document:
    """The base answer: exactly one of confirmationBase, cancelAction and deploymentBase while an action is open."""
    found: Document = {}
    if action is not None:
        if action.state is State.WAIT_CONFIRM:
            found["confirmationBase"] = {"href": _versioned(links.to("confirmationBase", action.id), action)}
        elif action.state is State.CANCELING:
            found["cancelAction"] = {"href": links.to("cancelAction", action.id)}
        elif action.state in _OFFERED:
            found["deploymentBase"] = {"href": _versioned(links.to("deploymentBase", action.id), action)}
    if installed is not None:
        found["installedBase"] = {"href": links.to("installedBase", installed.id)}
    if config_wanted:
        found["configData"] = {"href": links.to("configData")}
    found["tw:telemetry"] = {"href": links.to("tw", "telemetry")}
    found["tw:audit"] = {"href": links.to("tw", "audit")}
    minutes, seconds = divmod(sleep_s, 60)
    hours, minutes = divmod(minutes, 60)
    return {"config": {"polling": {"sleep": f"{hours:02d}:{minutes:02d}:{seconds:02d}"}}, "_links": found}


def deployment(links: Links, action: Action) -> Document:
    """What to install and when; the release document's path is what our devices follow."""
    when = "forced" if action.forced else "attempt"
    document: Document = {"download": when, "update": when}
    if action.window == "unavailable":
        document = {"download": "attempt", "update": "skip"}
    if action.window is not None:
        document["maintenanceWindow"] = action.window
    document["chunks"] = [
        {
            "part": "os",
            "name": action.product,
            "version": action.version,
            "artifacts": artifacts(links, action),
            "metadata": [{"key": "tidewaiter.release", "value": action.target_path}],
        }
    ]
    return document


def artifacts(links: Links, action: Action) -> list[Document]:
    """One artifact, release.json: a client of the field that takes exactly one must not be served more."""
    href = links.to("softwaremodules", action.release_id, "artifacts", "release.json")
    return [
        {
            "filename": "release.json",
            "hashes": {"sha1": action.sha1, "md5": action.md5, "sha256": action.digest},
            "size": action.length_bytes,
            "_links": {"download": {"href": href}, "md5sum": {"href": f"{href}.MD5SUM"}},
        }
    ]


def deployment_base(links: Links, action: Action, name: str, history: Sequence[str] | None) -> Document:
    """The answer of deploymentBase, confirmationBase/{id} (`name` = confirmation) and installedBase/{id}."""
    document: Document = {"id": str(action.id), name: deployment(links, action)}
    if history:
        document["actionHistory"] = {"status": action.state, "messages": list(history)}
    return document


def confirmation_base(links: Links, action: Action | None) -> Document:
    """Auto-confirmation is never active: a device may not decide that nobody is asked."""
    activate = {"activateAutoConfirm": {"href": links.to("confirmationBase", "activateAutoConfirm")}}
    document: Document = {"autoConfirm": {"active": False, "_links": activate}, "_links": {}}
    if action is not None and action.state is State.WAIT_CONFIRM:
        document["_links"]["confirmationBase"] = {
            "href": _versioned(links.to("confirmationBase", action.id), action)
        }
    return document


def cancel_action(action: Action) -> Document:
    return {"id": str(action.id), "cancelAction": {"stopId": str(action.id)}}


def read_feedback(body: object) -> Feedback:
    """`{"status": {"execution", "result": {"finished", "progress"}, "code", "details"}, "timestamp"}`."""
    status = _object(_object(body, "feedback").get("status"), "status")
    result = _object(status.get("result"), "status.result")
    progress = result.get("progress")
    cnt = of = None
    if progress is not None:
        cnt = _int(_object(progress, "status.result.progress").get("cnt"), "progress.cnt")
        of = _int(progress["of"], "progress.of") if progress.get("of") is not None else None
    timestamp = _object(body, "feedback").get("timestamp")
    if timestamp is not None and (type(timestamp) is not int or not 0 <= timestamp < 2**53):
        raise malformed("timestamp", "milliseconds since 1970", repr(timestamp))
    return Feedback(
        execution=_choice(status.get("execution"), EXECUTIONS, "status.execution"),
        finished=_choice(result.get("finished"), FINISHED, "status.result.finished"),
        code=_int(status["code"], "status.code") if status.get("code") is not None else None,
        details=_details(status.get("details")),
        progress_cnt=cnt,
        progress_of=of,
        device_utc_ms=timestamp,
    )


def read_confirmation(body: object) -> Feedback:
    """`{"confirmation": "confirmed"|"denied", "code", "details"}`."""
    document = _object(body, "confirmation feedback")
    return Feedback(
        execution=_choice(document.get("confirmation"), CONFIRMATIONS, "confirmation"),
        code=_int(document["code"], "code") if document.get("code") is not None else None,
        details=_details(document.get("details")),
    )


def read_config_data(body: object) -> tuple[str, dict[str, str]]:
    """Mode and attributes of configData; values stay as sent, names and values are bounded."""
    document = _object(body, "configData")
    mode = _choice(document.get("mode") or "merge", _MODES, "mode")
    data = _object(document.get("data"), "data")
    if len(data) > ATTRIBUTES_LIMIT:
        raise malformed("data", f"at most {ATTRIBUTES_LIMIT} attributes", str(len(data)))
    for key, value in data.items():
        if not key or len(key) > ATTRIBUTE_CHARACTERS:
            raise malformed(
                "data", f"names of 1..{ATTRIBUTE_CHARACTERS} characters", f"{len(key)} characters"
            )
        if not isinstance(value, str) or len(value) > ATTRIBUTE_CHARACTERS:
            raise malformed(
                f"data.{key}", f"a text of at most {ATTRIBUTE_CHARACTERS} characters", repr(value)
            )
    return mode, dict(data)


def read_installed(body: object) -> tuple[str, str]:
    """`{"name", "version"}`: what the device says it runs."""
    document = _object(body, "installedBase")
    name, version = document.get("name"), document.get("version")
    if not isinstance(name, str) or not isinstance(version, str) or max(len(name), len(version)) > 128:
        raise malformed("installedBase", "name and version as short texts", repr(document)[:80])
    return name, version


def read_snapshots(body: object) -> list[Any]:
    """One snapshot, a list of them, or `{"snapshots": [...]}`: 1..16."""
    found = body.get("snapshots", body) if isinstance(body, dict) else body
    snapshots = found if isinstance(found, list) else [found]
    if not 1 <= len(snapshots) <= SNAPSHOTS_LIMIT or not all(isinstance(one, dict) for one in snapshots):
        raise malformed("telemetry", f"1..{SNAPSHOTS_LIMIT} snapshot objects", f"{len(snapshots)} values")
    return snapshots


def _versioned(href: str, action: Action) -> str:
    """`?c=` changes with the content, so that a client notices a changed window or force."""
    content = f"{action.id}|{action.digest}|{action.window}|{action.forced}"
    return f"{href}?c={zlib.crc32(content.encode()) & 0x7FFFFFFF}"


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise malformed(what, "a JSON object", type(value).__name__)
    return value


def _choice(value: object, choices: Sequence[str], what: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise malformed(what, " or ".join(choices), repr(value))
    return value


def _int(value: object, what: str) -> int:
    if type(value) is not int or value not in _INT32:
        raise malformed(what, "a 32-bit number", repr(value))
    return value


def _details(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise malformed("details", "a list of texts", type(value).__name__)
    return tuple(escape(one)[:DETAIL_CHARACTERS] for one in value[:DETAILS_LIMIT])
