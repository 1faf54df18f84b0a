"""What every device route works with, and the few things several of them do."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from tidewaiter_core.clock import Clock

from tidewaiter_server import artifacts, limits
from tidewaiter_server.db import Database
from tidewaiter_server.ddi_messages import Links
from tidewaiter_server.devices import Presence
from tidewaiter_server.identity import Device, Identities
from tidewaiter_server.settings import Settings

HAL: Final = "application/hal+json"

Handler = Callable[["Ddi", Request, Device], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ddi:
    """What the routes work with."""

    settings: Settings
    database: Database
    clock: Clock
    identities: Identities
    presence: Presence
    files: artifacts.Files
    buckets: limits.Buckets
    origin: str
    revoked: set[str]
    """Keys revoked by this process, looked at between the pieces of a transfer."""

    def links(self, device: Device) -> Links:
        return Links(self.origin, device.tenant, device.id)


def hal(document: object) -> Response:
    return Response(json.dumps(document).encode(), media_type=HAL)


async def read_json(request: Request) -> Any:
    return limits.read_json(await limits.read_body(request, limits.DDI_BODY_BYTES))


async def serve_file(
    ddi: Ddi,
    request: Request,
    device: Device,
    folder: str,
    path: str,
    cache_control: str,
    *,
    media_type: str = "application/octet-stream",
) -> Response:
    return await ddi.files.serve(
        ddi.settings.repository_dir / folder,
        path,
        request.headers,
        method=request.method,
        cache_control=cache_control,
        media_type=media_type,
        still_allowed=lambda: device.spki_sha256 not in ddi.revoked,
    )
