"""The devices: enrollment list, reading their certificates, revocation, attributes, telemetry, presence."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID
from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from tidewaiter_core.clock import Clock, format_utc, parse_utc

from tidewaiter_server import audit
from tidewaiter_server.db import Database
from tidewaiter_server.errors import Refusal, malformed, not_found
from tidewaiter_server.schema import (
    device_attributes,
    device_keys,
    devices,
    telemetry_latest,
    telemetry_points,
)

ATTRIBUTES_LIMIT: Final = 64
ATTRIBUTE_CHARACTERS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What we read from a device certificate."""

    spki_sha256: str
    serial: str
    uri: str
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrollment:
    """One line of the allow-list."""

    id: str
    model: str
    hw: str
    udi_di: str
    certificate: Certificate


def read_certificate(data: bytes) -> Certificate:
    """Subject serial, SAN URI and key of a DER or PEM certificate.

    Raises:
        ValueError: Not a certificate, or without exactly one serialNumber and one URI.
    """
    if data.lstrip().startswith(b"-----BEGIN"):
        certificate = x509.load_pem_x509_certificate(data)
    else:
        certificate = x509.load_der_x509_certificate(data)
    serials = certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise ValueError("certificate without a subjectAltName") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(serials) != 1 or len(uris) != 1:
        raise ValueError(
            f"certificate with {len(serials)} serialNumber and {len(uris)} URI, expected one each"
        )
    spki = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return Certificate(
        spki_sha256=hashlib.sha256(spki).hexdigest(),
        serial=str(serials[0].value),
        uri=uris[0],
        not_after=certificate.not_valid_after_utc,
    )


def enroll(connection: Connection, clock: Clock, entry: Enrollment, *, tenant: str, actor: str) -> None:
    """Put a device on the list, or give a listed one another LDevID key; 409 if the key is another device's."""
    certificate = entry.certificate
    now = format_utc(clock.now_utc())
    if entry.id != certificate.serial:
        raise malformed("certificate_pem", f"a certificate of {entry.id}", f"one of {certificate.serial}")
    owner = connection.execute(
        select(device_keys.c.device_id).where(device_keys.c.spki_sha256 == certificate.spki_sha256)
    ).scalar_one_or_none()
    if owner is not None:
        raise Refusal(
            409,
            "device.exists",
            f"device {entry.id}: this key belongs to {owner} already; nothing was changed",
        )
    if connection.execute(select(devices.c.id).where(devices.c.id == entry.id)).first() is None:
        connection.execute(
            insert(devices).values(
                id=entry.id,
                tenant=tenant,
                model=entry.model,
                hw=entry.hw,
                serial=certificate.serial,
                udi_di=entry.udi_di,
                state="active",
                config_wanted=True,
                created_utc=now,
            )
        )
    connection.execute(
        insert(device_keys).values(
            spki_sha256=certificate.spki_sha256,
            device_id=entry.id,
            purpose="ldevid",
            status="active",
            not_after_utc=format_utc(certificate.not_after),
        )
    )
    audit.append(
        connection,
        clock,
        "device.imported",
        actor=actor,
        object=entry.id,
        fields={"spki_sha256": certificate.spki_sha256, "model": entry.model, "hw": entry.hw},
    )


def revoke(
    connection: Connection, clock: Clock, device_id: str, *, reason: str, actor: str
) -> frozenset[str]:
    """Revoke the device and all its keys; returns the keys, whose connections must go."""
    keys = frozenset(
        connection.execute(
            select(device_keys.c.spki_sha256).where(device_keys.c.device_id == device_id)
        ).scalars()
    )
    if not connection.execute(
        update(devices).where(devices.c.id == device_id).values(state="revoked")
    ).rowcount:
        raise not_found(f"device {device_id}")
    now = format_utc(clock.now_utc())
    connection.execute(
        update(device_keys)
        .where(device_keys.c.device_id == device_id, device_keys.c.status == "active")
        .values(status="revoked", revoked_utc=now, reason=reason)
    )
    audit.append(
        connection, clock, "device.revoked", actor=actor, object=device_id, fields={"reason": reason}
    )
    return keys


def put_attributes(
    connection: Connection, clock: Clock, device_id: str, *, mode: str, data: Mapping[str, str]
) -> None:
    """configData: merge, replace or remove attributes; 400 when more than 64 would remain."""
    now = format_utc(clock.now_utc())
    mine = device_attributes.c.device_id == device_id
    if mode == "replace":
        connection.execute(delete(device_attributes).where(mine))
    if mode == "remove":
        connection.execute(delete(device_attributes).where(mine, device_attributes.c.key.in_(list(data))))
    else:
        for key, value in data.items():
            row = {"device_id": device_id, "key": key, "value": value, "updated_utc": now}
            changed = upsert(device_attributes).values(row)
            connection.execute(
                changed.on_conflict_do_update(
                    index_elements=["device_id", "key"], set_={"value": value, "updated_utc": now}
                )
            )
    stored = dict(
        connection.execute(select(device_attributes.c.key, device_attributes.c.value).where(mine))
        .tuples()
        .all()
    )
    if len(stored) > ATTRIBUTES_LIMIT:
        raise malformed(
            "configData", f"at most {ATTRIBUTES_LIMIT} attributes after the change", str(len(stored))
        )
    connection.execute(
        update(devices)
        .where(devices.c.id == device_id)
        .values(
            config_wanted=False,
            config_utc=now,
            release=stored.get("release", ""),
            slot=stored.get("slot", ""),
        )
    )
    audit.append(
        connection,
        clock,
        "device.attributes",
        actor=f"device:{device_id}",
        object=device_id,
        fields={"mode": mode, "keys": len(data)},
    )


def config_is_wanted(row: Mapping[str, Any], now: datetime, max_age_s: float) -> bool:
    """Whether the base answer asks for configData: never sent, asked for, or too old."""
    sent = row["config_utc"]
    return bool(row["config_wanted"]) or sent is None or (now - parse_utc(sent)).total_seconds() > max_age_s


def add_telemetry(connection: Connection, clock: Clock, device_id: str, snapshots: list[Any]) -> None:
    """Store snapshots as they came; the last one is the latest."""
    now = format_utc(clock.now_utc())
    documents = [json.dumps(snapshot, sort_keys=True, separators=(",", ":")) for snapshot in snapshots]
    connection.execute(
        insert(telemetry_points),
        [{"device_id": device_id, "received_utc": now, "document": document} for document in documents],
    )
    latest = {"received_utc": now, "document": documents[-1]}
    connection.execute(
        upsert(telemetry_latest)
        .values(device_id=device_id, **latest)
        .on_conflict_do_update(index_elements=["device_id"], set_=latest)
    )
    audit.append(
        connection,
        clock,
        "device.telemetry",
        actor=f"device:{device_id}",
        object=device_id,
        fields={"snapshots": len(documents)},
    )


class Presence:
    """Who was seen when, collected in memory and written every 2 s: a poll must not cost a commit."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def saw(self, device_id: str, utc: str) -> None:
        self._seen[device_id] = utc

    async def flush(self, database: Database) -> None:
        """Write what has come together. Not audited: it reports no change that anybody made."""
        seen, self._seen = self._seen, {}
        if not seen:
            return

        def job(connection: Connection) -> None:
            for device_id, utc in seen.items():
                connection.execute(update(devices).where(devices.c.id == device_id).values(last_seen_utc=utc))

        await database.write(job)
