"""Who is calling: from the certificate that the TLS handshake verified, never from a path or a body.

Path validation checks no revocation, so the key is looked up in `device_keys` on every request (cached for
`identity_recheck_s`, forgotten at once by a revocation in this process).
"""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, select
from tidewaiter_core.clock import Clock

from tidewaiter_server.db import Database
from tidewaiter_server.devices import read_certificate
from tidewaiter_server.errors import Denial, Refusal
from tidewaiter_server.schema import device_keys, devices

_URI_PREFIX: Final = "urn:dev:ops:"
_CACHE_LIMIT: Final = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device whose certificate was checked; the only thing DDI routes know about the caller."""

    id: str
    tenant: str
    spki_sha256: str
    not_after: datetime


class Identities:
    """Turns a verified client certificate into a device, or refuses."""

    def __init__(self, database: Database, clock: Clock, *, tenant: str, recheck_s: float) -> None:
        self._database = database
        self._clock = clock
        self._tenant = tenant
        self._recheck_s = recheck_s
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[Device, float]] = {}

    async def device_of(self, certificate_der: bytes, path: str) -> Device:
        """The active device of this certificate; 403 with an audit record otherwise."""
        fingerprint = hashlib.sha256(certificate_der).digest()
        now_s = self._clock.boottime_s()
        with self._lock:
            known = self._known.get(fingerprint)
        if known is not None and known[1] > now_s:
            device = known[0]
        else:
            device = await self._look_up(certificate_der, path)
            with self._lock:
                if len(self._known) > _CACHE_LIMIT:
                    self._known.clear()
                self._known[fingerprint] = (device, now_s + self._recheck_s)
        if device.not_after <= self._clock.now_utc():
            # A long-lived connection outlives the handshake's own check.
            raise _denied(
                "device.expired", device.id, path, "the certificate has expired", device.spki_sha256
            )
        return device

    def forget(self, spki_sha256: frozenset[str]) -> None:
        """Drop cached answers for these keys: the next request asks the database."""
        with self._lock:
            gone = [key for key, (device, _) in self._known.items() if device.spki_sha256 in spki_sha256]
            for key in gone:
                del self._known[key]

    async def _look_up(self, certificate_der: bytes, path: str) -> Device:
        try:
            certificate = read_certificate(certificate_der)
        except ValueError as error:
            raise _denied("device.unknown", "certificate", path, str(error), "") from error

        def find(connection: Connection) -> Mapping[str, Any] | None:
            row = (
                connection.execute(
                    select(
                        device_keys.c.purpose,
                        device_keys.c.status,
                        devices.c.id,
                        devices.c.serial,
                        devices.c.tenant,
                        devices.c.state,
                    )
                    .join(devices, devices.c.id == device_keys.c.device_id)
                    .where(device_keys.c.spki_sha256 == certificate.spki_sha256)
                )
                .mappings()
                .first()
            )
            return dict(row) if row else None

        row = await self._database.read(find)
        named = certificate.serial
        if row is None or row["tenant"] != self._tenant:
            raise _denied(
                "device.unknown",
                named,
                path,
                "the key is not on the enrollment list",
                certificate.spki_sha256,
            )
        uri_serial = certificate.uri.removeprefix(_URI_PREFIX).partition("-")[2]
        if not row["serial"] == certificate.serial == uri_serial:
            raise _denied(
                "device.unknown",
                named,
                path,
                f"serial and URI do not name device {row['id']}",
                certificate.spki_sha256,
            )
        if row["status"] != "active" or row["state"] != "active":
            raise _denied(
                "device.revoked", row["id"], path, "key or device is revoked", certificate.spki_sha256
            )
        if row["purpose"] != "ldevid":
            raise _denied(
                "device.purpose",
                row["id"],
                path,
                f"a {row['purpose']} key serves enrollment only",
                certificate.spki_sha256,
            )
        return Device(
            id=row["id"],
            tenant=row["tenant"],
            spki_sha256=certificate.spki_sha256,
            not_after=certificate.not_after,
        )


def _denied(code: str, named: str, path: str, reason: str, spki_sha256: str) -> Refusal:
    return Refusal(
        403,
        code,
        f"client certificate of {named[:64]}: {reason}; the request was refused",
        denial=Denial(
            kind=code, actor=f"certificate:{named}", object=path, fields={"spki_sha256": spki_sha256}
        ),
    )
