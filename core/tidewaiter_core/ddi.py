"""The server's answers of the poll protocol (hawkBit DDI), read strictly, and what is sent back. Pure.

An answer may come from a proxy's block page, a captive portal or an attacker with a certificate. So: at most 256 KiB, at most 16
levels, no duplicate keys, no NaN; every value that is used has its type and range; everything else is ignored, because a newer
server may say more. Documents to send are in `ddi_report`, the rule for links in `ddi_link`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tidewaiter_core.ddi_json import (
    BadAnswerError,
    BadJsonError,
    action_id_of,
    list_of,
    load_json,
    object_of,
    shown,
    text_of,
)
from tidewaiter_core.ddi_link import ForeignLinkError, check_link
from tidewaiter_core.ddi_report import (
    CANCEL_DONE,
    CANCEL_TOO_LATE,
    STANDING_OF_PHASE,
    Execution,
    Finished,
    Standing,
    config_data,
    confirmation,
    feedback,
    format_sleep,
    phase_feedback,
)

__all__ = [
    "CANCEL_DONE", "CANCEL_TOO_LATE", "STANDING_OF_PHASE", "BadAnswerError", "BadJsonError", "BasePoll", "CancelAction",
    "Chunk", "Deployment", "Execution", "Finished", "ForeignLinkError", "Handling", "ReleaseRef", "Standing",
    "UnusableDeploymentError", "check_link", "config_data", "confirmation", "feedback", "format_sleep", "load_json",
    "parse_base", "parse_cancel", "parse_confirmation_base", "parse_deployment", "parse_sleep", "phase_feedback",
]  # fmt: skip

DEFAULT_SLEEP_S = 300
"""If the server does not say how long to sleep."""
LINKS_LIMIT = 64
RELEASE_KEY = "tidewaiter.release"

_SLEEP = re.compile(r"([0-9]{2}):([0-5][0-9]):([0-5][0-9])")
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._+\-]{0,63}"
_RELEASE_PATH = re.compile(rf"releases/{_SEGMENT}/{_SEGMENT}/release\.json")


class UnusableDeploymentError(BadAnswerError):
    """A deployment that this device cannot carry out, whatever is tried; `action_id` is what to refuse."""

    code = "net.unusable-deployment"
    retryable = False

    def __init__(self, message: str, *, action_id: str) -> None:
        super().__init__(message)
        self.action_id = action_id


class Handling(StrEnum):
    """`deployment.download` and `deployment.update`."""

    SKIP = "skip"
    ATTEMPT = "attempt"
    FORCED = "forced"


@dataclass(frozen=True, slots=True)
class BasePoll:
    """The answer of the base poll."""

    sleep_s: int
    """As the server says it; the caller clamps it."""
    links: Mapping[str, str]
    """Relation to href, unchecked: see `check_link`."""


@dataclass(frozen=True, slots=True)
class ReleaseRef:
    """What a deployment names. It is a name only: trust comes from the update repository's signatures."""

    name: str
    version: str
    path: str
    """Repository path of the release document."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One software module of a deployment."""

    part: str
    name: str
    version: str
    metadata: Mapping[str, str]
    artifacts: Mapping[str, str]
    """File name to download href, unchecked. Used for repository bytes if `server.repository` is `artifacts`, never for trust."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """The answer of deploymentBase or of one confirmationBase action."""

    id: str
    download: Handling
    update: Handling
    maintenance_window: str | None
    """`available`, `unavailable`, or None if the server has no window."""
    chunks: tuple[Chunk, ...]
    release: ReleaseRef
    confirming: bool
    """It came from confirmationBase: consent is asked for, nothing else yet."""


@dataclass(frozen=True, slots=True)
class CancelAction:
    """The answer of cancelAction."""

    id: str
    stop_id: str
    """The action to stop."""


def parse_base(data: bytes) -> BasePoll:
    """Read the base poll's answer; BadJsonError or BadAnswerError."""
    document = load_json(data, what="poll answer")
    polling = object_of(object_of(document.get("config", {}), "config").get("polling", {}), "config.polling")
    sleep = polling.get("sleep")
    return BasePoll(
        sleep_s=DEFAULT_SLEEP_S if sleep is None else parse_sleep(sleep),
        links=_links(document, "poll answer"),
    )


def parse_sleep(text: object) -> int:
    """Seconds of `HH:MM:SS`; BadAnswerError for anything else."""
    match = _SLEEP.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[1]) > 23:
        raise BadAnswerError(
            f"config.polling.sleep: expected HH:MM:SS, found {shown(text)}; the answer is ignored"
        )
    return int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3])


def parse_deployment(data: bytes) -> Deployment:
    """Read the answer of deploymentBase/{id} or confirmationBase/{id}.

    Raises:
        BadJsonError, BadAnswerError: Not such an answer.
        UnusableDeploymentError: One, but it does not name exactly one release.
    """
    document = load_json(data, what="deployment")
    action_id = action_id_of(document.get("id"), "id")
    confirming = "deployment" not in document and "confirmation" in document
    where = "confirmation" if confirming else "deployment"
    body = object_of(document.get(where), where)
    found = body.get("chunks")
    if not isinstance(found, list) or len(found) > 64:
        raise BadAnswerError(
            f"{where}.chunks: expected a list of up to 64, found {shown(found)}; the answer is ignored"
        )
    chunks = tuple(_chunk(chunk, f"{where}.chunks[{number}]") for number, chunk in enumerate(found))
    window = body.get("maintenanceWindow")
    if window not in (None, "available", "unavailable"):
        raise BadAnswerError(
            f"{where}.maintenanceWindow: expected available or unavailable, found {shown(window)}; the answer is ignored"
        )
    return Deployment(
        id=action_id,
        download=_handling(body, "download", where),
        update=_handling(body, "update", where),
        maintenance_window=window,
        chunks=chunks,
        release=_release(chunks, action_id),
        confirming=confirming,
    )


def parse_confirmation_base(data: bytes) -> str | None:
    """The href of the action that waits for confirmation, None if none does."""
    document = load_json(data, what="confirmationBase")
    return _links(document, "confirmationBase").get("confirmationBase")


def parse_cancel(data: bytes) -> CancelAction:
    """Read the answer of cancelAction/{id}; BadJsonError or BadAnswerError."""
    document = load_json(data, what="cancelAction")
    body = object_of(document.get("cancelAction"), "cancelAction")
    stop_id = action_id_of(body.get("stopId"), "cancelAction.stopId")
    return CancelAction(id=action_id_of(document.get("id", stop_id), "id"), stop_id=stop_id)


def _release(chunks: tuple[Chunk, ...], action_id: str) -> ReleaseRef:
    if len(chunks) != 1:
        raise UnusableDeploymentError(
            f"action {action_id}: expected one software module, found {len(chunks)}; the action is refused",
            action_id=action_id,
        )
    chunk = chunks[0]
    path = chunk.metadata.get(RELEASE_KEY, f"releases/{chunk.name}/{chunk.version}/release.json")
    if not _RELEASE_PATH.fullmatch(path):
        raise UnusableDeploymentError(
            f"action {action_id}: expected releases/<product>/<version>/release.json, found {shown(path)};"
            " the action is refused",
            action_id=action_id,
        )
    return ReleaseRef(name=chunk.name, version=chunk.version, path=path)


def _chunk(value: object, where: str) -> Chunk:
    chunk = object_of(value, where)
    metadata: dict[str, str] = {}
    for entry in list_of(chunk.get("metadata"), f"{where}.metadata"):
        pair = object_of(entry, f"{where}.metadata")
        key, text = pair.get("key"), pair.get("value")
        if isinstance(key, str) and isinstance(text, str):
            if key in metadata:
                raise BadAnswerError(f"{where}.metadata: {shown(key)} stands twice; the answer is ignored")
            metadata[key] = text
    artifacts: dict[str, str] = {}
    for entry in list_of(chunk.get("artifacts"), f"{where}.artifacts"):
        artifact = object_of(entry, f"{where}.artifacts")
        name = text_of(artifact.get("filename"), f"{where}.artifacts.filename")
        if name in artifacts:
            raise BadAnswerError(
                f"{where}.artifacts: two files have the name {shown(name)}; the answer is ignored"
            )
        links = _links(artifact, f"{where}.artifacts")
        artifacts[name] = links.get("download") or links.get("download-http") or ""
    return Chunk(
        part=text_of(chunk.get("part"), f"{where}.part"),
        name=text_of(chunk.get("name"), f"{where}.name"),
        version=text_of(chunk.get("version"), f"{where}.version"),
        metadata=metadata,
        artifacts=artifacts,
    )


def _links(document: Mapping[str, Any], where: str) -> dict[str, str]:
    """Relation to href; a relation without a usable href is left out, as an unknown one would be."""
    found = object_of(document.get("_links", {}), f"{where}: _links")
    if len(found) > LINKS_LIMIT:
        raise BadAnswerError(
            f"{where}: _links: {len(found)} links, at most {LINKS_LIMIT} are read; the answer is ignored"
        )
    return {
        name: link["href"]
        for name, link in found.items()
        if isinstance(link, dict) and isinstance(link.get("href"), str) and link["href"]
    }


def _handling(body: Mapping[str, Any], name: str, where: str) -> Handling:
    value = body.get(name, Handling.ATTEMPT.value)
    if not isinstance(value, str) or value not in set(Handling):
        raise BadAnswerError(
            f"{where}.{name}: expected skip, attempt or forced, found {shown(value)}; the answer is ignored"
        )
    return Handling(value)
