"""The directory of a test PKI: three separate trees, made once, read by the issuing commands."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tidewaiter_factory.ca import (
    FactoryError,
    Identity,
    make_authority,
    make_root,
    read_identity,
    write_identity,
)
from tidewaiter_factory.profile import FACTORY_ROOT, LINE_CA, OPERATIONS_CA, OPERATIONS_ROOT, SERVER_ROOT

DEVICE_CAS = "device-cas.pem"
"""What the server accepts client certificates of: operations root and operations CA."""
SERVER_ROOT_FILE = "server-root.pem"
"""What devices pin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pki:
    """The authorities of one PKI. No key is used in two of the three trees."""

    factory_root: Identity
    line_ca: Identity
    operations_root: Identity
    operations_ca: Identity
    server_root: Identity


def make_pki(organization: str, now: datetime, *, line: str = "line-1") -> Pki:
    """All authorities, in memory."""
    factory_root = make_root(FACTORY_ROOT, organization, f"{organization} factory root", now)
    operations_root = make_root(OPERATIONS_ROOT, organization, f"{organization} operations root", now)
    return Pki(
        factory_root=factory_root,
        line_ca=make_authority(LINE_CA, factory_root, f"{organization} {line} CA", now, line=line),
        operations_root=operations_root,
        operations_ca=make_authority(OPERATIONS_CA, operations_root, f"{organization} operations CA", now),
        server_root=make_root(SERVER_ROOT, organization, f"{organization} server root", now),
    )


def write_pki(pki: Pki, directory: Path) -> None:
    """Keys under `private/` (0700), certificates beside it; refuses a directory that holds a PKI already."""
    if (directory / "private").exists():
        raise FactoryError(
            f"{directory}: holds a PKI already; a second one would strand its devices, nothing was written",
            code="factory.exists",
        )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "private").mkdir(mode=0o700)
    for name, identity in _members(pki):
        write_identity(identity, directory / f"{name}.pem", directory / "private" / f"{name}.key")
    anchors = pki.operations_root.certificate_pem() + pki.operations_ca.certificate_pem()
    (directory / DEVICE_CAS).write_bytes(anchors)


def read_pki(directory: Path) -> Pki:
    """What `write_pki` wrote."""
    found = {
        name: read_identity(directory / f"{name}.pem", directory / "private" / f"{name}.key")
        for name in ("factory-root", "line-ca", "operations-root", "operations-ca", "server-root")
    }
    return Pki(
        factory_root=found["factory-root"],
        line_ca=found["line-ca"],
        operations_root=found["operations-root"],
        operations_ca=found["operations-ca"],
        server_root=found["server-root"],
    )


def _members(pki: Pki) -> list[tuple[str, Identity]]:
    return [
        ("factory-root", pki.factory_root),
        ("line-ca", pki.line_ca),
        ("operations-root", pki.operations_root),
        ("operations-ca", pki.operations_ca),
        ("server-root", pki.server_root),
    ]
