"""The management API of the console listener: devices, releases, deployments and the audit chain, for token holders.

Deny by default: `build` refuses a route that names no permission, and a caller whose token lacks it. Reads of device data
are audited like writes. Bodies are strict (`extra="forbid"`); errors are RFC 9457 problems.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from starlette.types import ASGIApp
from tidewaiter_core.clock import Clock

from tidewaiter_server import audit, deployments, devices, releases, views
from tidewaiter_server.api_bodies import (
    NewDeployment,
    NewDevice,
    NewRelease,
    Reason,
    WindowChange,
    enrollment,
)
from tidewaiter_server.boundary import Boundary, from_starlette, render_problem
from tidewaiter_server.db import Database
from tidewaiter_server.errors import Refusal, ServerError, malformed
from tidewaiter_server.settings import Settings
from tidewaiter_server.tokens import Gate

PERMISSIONS: Final = (
    "device.view",
    "device.manage",
    "device.revoke",
    "release.view",
    "release.import",
    "deployment.view",
    "deployment.control",
    "audit.view",
)

DeviceId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Number = Annotated[int, Path(ge=1, lt=2**31)]
After = Annotated[str, Query(max_length=64)]
Limit = Annotated[int, Query(ge=1, le=200)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What the routes work with."""

    settings: Settings
    database: Database
    clock: Clock
    end_connections: Callable[[frozenset[str]], None]
    """Ends what revoked keys are doing right now."""


def build(api: Api) -> ASGIApp:
    """The console application: gate, then routes."""
    app = _Application(title="tidewaiter-server", docs_url=None, redoc_url=None, openapi_url=None)
    _device_routes(app, api)
    _release_routes(app, api)
    _deployment_routes(app, api)
    _audit_routes(app, api)
    _require_permissions(app)

    app.router.redirect_slashes = False
    gate = Gate(app, database=api.database, clock=api.clock, routes=app.routes)
    return Boundary(gate, database=api.database, clock=api.clock, render=render_problem, translate=_translate)


class _Application(FastAPI):
    """Without the framework's own error answers: every exception reaches the boundary."""

    def build_middleware_stack(self) -> ASGIApp:
        return AsyncExitStackMiddleware(self.router)


def _translate(error: Exception) -> Refusal | None:
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return malformed(where, str(first["msg"]), repr(first.get("input")))
    return from_starlette(error)


def _require_permissions(app: FastAPI) -> None:
    for route in app.routes:
        name = (route.openapi_extra or {}).get("x-permission") if isinstance(route, APIRoute) else None
        if name not in PERMISSIONS:
            raise ServerError(
                f"route {getattr(route, 'path', route)}: expected a permission, found {name!r}; not started"
            )


def _needs(permission: str) -> dict[str, str]:
    return {"x-permission": permission}


def _actor(request: Request) -> str:
    return str(request.state.actor)


def _device_routes(app: FastAPI, api: Api) -> None:
    tenant, database, clock = api.settings.tenant, api.database, api.clock

    @app.post("/api/v1/devices", status_code=201, openapi_extra=_needs("device.manage"))
    async def add(request: Request, body: NewDevice) -> Any:
        entry = enrollment(body)

        def job(connection: Any) -> Any:
            devices.enroll(connection, clock, entry, tenant=tenant, actor=_actor(request))
            return views.device(connection, tenant, body.id)

        return await database.write(job)

    @app.get("/api/v1/devices", openapi_extra=_needs("device.view"))
    async def listed(request: Request, after: After = "", limit: Limit = 100) -> Any:
        return await _audited(api, request, "devices", lambda c: views.devices_page(c, tenant, after, limit))

    @app.get("/api/v1/devices/{device_id}", openapi_extra=_needs("device.view"))
    async def one(request: Request, device_id: DeviceId) -> Any:
        return await _audited(api, request, device_id, lambda c: views.device(c, tenant, device_id))

    @app.get("/api/v1/devices/{device_id}/actions", openapi_extra=_needs("device.view"))
    async def actions(request: Request, device_id: DeviceId) -> Any:
        return await _audited(api, request, device_id, lambda c: views.device_actions(c, tenant, device_id))

    @app.get("/api/v1/devices/{device_id}/telemetry", openapi_extra=_needs("device.view"))
    async def telemetry(request: Request, device_id: DeviceId, limit: Limit = 100) -> Any:
        return await _audited(api, request, device_id, lambda c: views.telemetry(c, tenant, device_id, limit))

    @app.get("/api/v1/devices/{device_id}/audit/{component}", openapi_extra=_needs("audit.view"))
    async def chain(
        request: Request,
        device_id: DeviceId,
        component: Literal["agent", "hal", "updater"],
        after: Annotated[int, Query(ge=-1)] = -1,
        limit: Limit = 100,
    ) -> Any:
        return await _audited(
            api,
            request,
            device_id,
            lambda c: views.device_audit(c, tenant, device_id, component, after, limit),
        )

    @app.post("/api/v1/devices/{device_id}/revoke", openapi_extra=_needs("device.revoke"))
    async def revoke(request: Request, device_id: DeviceId, body: Reason) -> Any:
        def job(connection: Any) -> Any:
            found = views.device(connection, tenant, device_id)
            keys = devices.revoke(connection, clock, device_id, reason=body.reason, actor=_actor(request))
            return found | {"state": "revoked"}, keys

        answer, keys = await database.write(job)
        api.end_connections(keys)
        return answer


def _release_routes(app: FastAPI, api: Api) -> None:
    tenant, database, clock = api.settings.tenant, api.database, api.clock

    @app.post("/api/v1/releases", status_code=201, openapi_extra=_needs("release.import"))
    async def add(request: Request, body: NewRelease) -> Any:
        found = await database.read(
            lambda _: releases.find(api.settings.repository_dir, body.product, body.version)
        )

        def job(connection: Any) -> Any:
            release_id = releases.store(
                connection,
                clock,
                found,
                tenant=tenant,
                product=body.product,
                version=body.version,
                actor=_actor(request),
            )
            return views.release(connection, tenant, release_id)

        return await database.write(job)

    @app.get("/api/v1/releases", openapi_extra=_needs("release.view"))
    async def listed(after: Annotated[int, Query(ge=0)] = 0, limit: Limit = 100) -> Any:
        return await database.read(lambda c: views.releases_page(c, tenant, after, limit))


def _deployment_routes(app: FastAPI, api: Api) -> None:
    tenant, database, clock = api.settings.tenant, api.database, api.clock

    @app.post("/api/v1/deployments", status_code=201, openapi_extra=_needs("deployment.control"))
    async def add(request: Request, body: NewDeployment) -> Any:
        def job(connection: Any) -> Any:
            number = deployments.create(
                connection,
                clock,
                tenant=tenant,
                release_id=body.release_id,
                device_ids=body.device_ids,
                forced=body.forced,
                confirm=body.confirm,
                window=body.window,
                actor=_actor(request),
            )
            return views.deployment(connection, tenant, number)

        return await database.write(job)

    @app.get("/api/v1/deployments", openapi_extra=_needs("deployment.view"))
    async def listed(request: Request, after: Annotated[int, Query(ge=0)] = 0, limit: Limit = 100) -> Any:
        return await _audited(
            api, request, "deployments", lambda c: views.deployments_page(c, tenant, after, limit)
        )

    @app.get("/api/v1/deployments/{deployment_id}", openapi_extra=_needs("deployment.view"))
    async def one(request: Request, deployment_id: Number) -> Any:
        return await _audited(
            api, request, f"deployment:{deployment_id}", lambda c: views.deployment(c, tenant, deployment_id)
        )

    @app.post("/api/v1/deployments/{deployment_id}/cancel", openapi_extra=_needs("deployment.control"))
    async def cancel(request: Request, deployment_id: Number) -> Any:
        def job(connection: Any) -> Any:
            deployments.cancel(
                connection, clock, tenant=tenant, deployment_id=deployment_id, actor=_actor(request)
            )
            return views.deployment(connection, tenant, deployment_id)

        return await database.write(job)

    @app.patch("/api/v1/deployments/{deployment_id}", openapi_extra=_needs("deployment.control"))
    async def change(request: Request, deployment_id: Number, body: WindowChange) -> Any:
        def job(connection: Any) -> Any:
            deployments.set_window(
                connection,
                clock,
                tenant=tenant,
                deployment_id=deployment_id,
                window=body.window,
                actor=_actor(request),
            )
            return views.deployment(connection, tenant, deployment_id)

        return await database.write(job)


def _audit_routes(app: FastAPI, api: Api) -> None:
    @app.get("/api/v1/audit", openapi_extra=_needs("audit.view"))
    async def listed(request: Request, after: Annotated[int, Query(ge=-1)] = -1, limit: Limit = 100) -> Any:
        return await _audited(
            api, request, "audit", lambda c: views.server_audit_page(c, after, limit), kind="audit.read"
        )


async def _audited(
    api: Api, request: Request, what: str, look: Callable[[Any], Any], *, kind: str = "device.read"
) -> Any:
    """Read, note who read what, then answer: the record is durable before the data leaves."""
    found = await api.database.read(look)
    route = PurePosixPath(request.url.path).name
    await api.database.write(
        lambda c: audit.append(c, api.clock, kind, actor=_actor(request), object=what, fields={"what": route})
    )
    return found
