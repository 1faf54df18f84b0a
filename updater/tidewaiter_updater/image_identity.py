"""What release the booted root says it is, and which device this is: two small documents, read once at start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidewaiter_core.clock import format_utc, parse_utc
from tidewaiter_core.durable import load_document
from tidewaiter_core.errors import ConfigError, StateError
from tidewaiter_core.payload.limits import U16_MAX
from tidewaiter_core.payload.policy import Data

from tidewaiter_updater.model import RunningRelease


def read_identity(path: Path) -> RunningRelease:
    """The identity file inside the booted, read-only root; ConfigError when it does not say what runs."""
    document = _document(path, "the identity of the running image")
    try:
        return RunningRelease(
            product=_text(document, "product"),
            version=_text(document, "version"),
            sequence=_number(document, "sequence"),
            security_epoch=_number(document, "security_epoch"),
            built_utc=format_utc(parse_utc(_text(document, "built_utc"))),
            hw=tuple(str(item) for item in document["hw"]),
            data=_data(document["data"]) if "data" in document else None,
        )
    except (KeyError, TypeError, ValueError) as err:
        raise ConfigError(
            f"{path}: not the identity of an image ({err}); the updater does not start"
        ) from err


def read_serial(path: Path) -> str:
    """The serial number of this device, written once in the factory."""
    serial = _document(path, "the provisioning document").get("serial")
    if not isinstance(serial, str) or not 1 <= len(serial) <= 64:
        raise ConfigError(
            f"{path}: serial is {serial!r}, expected 1 to 64 characters; the updater does not start"
        )
    return serial


def _data(document: Any) -> Data:
    """The same member as in the release document, and the same rules."""
    if not isinstance(document, dict) or type(document["reversible"]) is not bool:
        raise ValueError(f"data is {document!r}, expected writes, reads_min, reads_max and reversible")
    data = Data(
        writes=_number(document, "writes"),
        reads_min=_number(document, "reads_min"),
        reads_max=_number(document, "reads_max"),
        reversible=document["reversible"],
    )
    if not data.reads_min <= data.writes <= data.reads_max <= U16_MAX:
        raise ValueError(f"data is {document!r}, expected reads_min <= writes <= reads_max <= {U16_MAX}")
    return data


def _document(path: Path, what: str) -> dict[str, Any]:
    try:
        document = load_document(path, schema=1)
    except StateError as err:
        raise ConfigError(str(err)) from err
    if document is None:
        raise ConfigError(f"{path}: expected {what}, found no file; the updater does not start")
    return document


def _text(document: dict[str, Any], name: str) -> str:
    value = document[name]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is {value!r}, expected text")
    return value


def _number(document: dict[str, Any], name: str) -> int:
    value = document[name]
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is {value!r}, expected a number from 0 on")
    return value
