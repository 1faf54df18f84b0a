"""The device listener's routes: DDI version 1 as hawkBit publishes it, our `tw:` extensions, and the TUF repository.

Every route goes through `_Device.__call__`: identity from the certificate, then tenant and id of the path against it
(404 and `device.impersonation` otherwise), then the rate limit. A handler never sees a request of anybody else.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, select, update
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send
from tidewaiter_core.clock import Clock, format_utc

from tidewaiter_server import artifacts, audit, ddi_messages, deployments, ingest, limits
from tidewaiter_server import devices as enrollment
from tidewaiter_server.actions_rules import Channel, State
from tidewaiter_server.boundary import Boundary, from_starlette, render_ddi
from tidewaiter_server.db import Database
from tidewaiter_server.ddi_messages import Links
from tidewaiter_server.deployments import Action
from tidewaiter_server.devices import Presence
from tidewaiter_server.errors import Denial, Refusal, malformed, not_found
from tidewaiter_server.identity import Device, Identities
from tidewaiter_server.protocol import PEER_CERTIFICATE
from tidewaiter_server.schema import devices, releases
from tidewaiter_server.settings import Settings

_HAL: Final = "application/hal+json"
_READABLE: Final = ("application/json", "application/hal+json", "application/*", "*/*")
_PREFIX: Final = "/{tenant}/controller/v1/{controller_id}"
_ACTION_ID: Final = "{action_id:int}"
_HISTORY_LIMIT: Final = 100

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


def build(ddi: Ddi) -> ASGIApp:
    """The device application."""
    routes = [
        Route(path, _Device(ddi, handler, media=media), methods=[method])
        for method, path, handler, media in (
            ("GET", _PREFIX, _base, True),
            ("PUT", f"{_PREFIX}/configData", _config_data, True),
            ("GET", f"{_PREFIX}/deploymentBase/{_ACTION_ID}", _deployment_base, True),
            ("POST", f"{_PREFIX}/deploymentBase/{_ACTION_ID}/feedback", _deployment_feedback, True),
            ("GET", f"{_PREFIX}/cancelAction/{_ACTION_ID}", _cancel_action, True),
            ("POST", f"{_PREFIX}/cancelAction/{_ACTION_ID}/feedback", _cancel_feedback, True),
            ("GET", f"{_PREFIX}/confirmationBase", _confirmation_base, True),
            ("GET", f"{_PREFIX}/confirmationBase/{_ACTION_ID}", _confirmation_action, True),
            ("POST", f"{_PREFIX}/confirmationBase/{_ACTION_ID}/feedback", _confirmation_feedback, True),
            ("POST", f"{_PREFIX}/confirmationBase/activateAutoConfirm", _activate_auto_confirm, True),
            ("POST", f"{_PREFIX}/confirmationBase/deactivateAutoConfirm", _deactivate_auto_confirm, False),
            ("PUT", f"{_PREFIX}/installedBase", _put_installed, True),
            ("GET", f"{_PREFIX}/installedBase/{_ACTION_ID}", _installed_base, True),
            ("GET", f"{_PREFIX}/softwaremodules/{{module_id:int}}/artifacts", _artifact_list, True),
            ("GET", f"{_PREFIX}/softwaremodules/{{module_id:int}}/artifacts/{{name}}", _artifact, False),
            ("POST", f"{_PREFIX}/tw/telemetry", _telemetry, True),
            ("POST", f"{_PREFIX}/tw/audit/{{component}}", _audit_ingest, False),
            ("GET", "/tuf/metadata/{path:path}", _tuf_metadata, False),
            ("GET", "/tuf/targets/{path:path}", _tuf_target, False),
        )
    ]

    # A bare router, not a Starlette application: that one answers 500 itself before our boundary sees the exception.
    router = Router(routes, redirect_slashes=False)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # makes the router raise its 404 and 405 instead of answering in plain text
        await router(scope, receive, send)

    return Boundary(
        application, database=ddi.database, clock=ddi.clock, render=render_ddi, translate=from_starlette
    )


class _Device:
    """One route: who is calling, may he be here, is he too fast; then the handler."""

    def __init__(self, ddi: Ddi, handler: Handler, *, media: bool) -> None:
        self._ddi = ddi
        self._handler = handler
        self._media = media

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        answer = await self._answer(request)
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        ddi, path = self._ddi, request.url.path
        certificate = request.scope.get("extensions", {}).get(PEER_CERTIFICATE)
        if certificate is None:
            raise Refusal(
                401,
                "device.no-certificate",
                "no client certificate on this connection; the request was refused",
                denial=Denial(kind="device.no-certificate", actor="anonymous", object=path),
            )
        device = await ddi.identities.device_of(certificate, path)
        claimed = request.path_params.get("tenant"), request.path_params.get("controller_id")
        if claimed[1] is not None and claimed != (device.tenant, device.id):
            raise Refusal(
                404,
                "request.not-found",
                "no such device; nothing was changed",
                denial=Denial(kind="device.impersonation", actor=f"device:{device.id}", object=path),
            )
        ddi.presence.saw(device.id, format_utc(ddi.clock.now_utc()))
        if claimed[1] is not None:
            ddi.buckets.take(device.id)
        if self._media:
            _check_media(request)
        return await self._handler(ddi, request, device)


def _check_media(request: Request) -> None:
    accept = request.headers.get("accept", "*/*")
    offered = [one.partition(";")[0].strip().lower() for one in accept.split(",")]
    if not any(one in _READABLE for one in offered):
        raise Refusal(
            406,
            "request.not-acceptable",
            f"Accept {accept[:80]!r}: this server speaks {_HAL}; nothing was sent",
        )
    if request.method in ("POST", "PUT"):
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("application/json", "application/hal+json"):
            raise Refusal(
                415,
                "request.media-type",
                f"Content-Type {kind[:80]!r}: expected application/json; nothing was changed",
            )


def _hal(document: object) -> Response:
    return Response(json.dumps(document).encode(), media_type=_HAL)


async def _json(request: Request) -> Any:
    return limits.read_json(await limits.read_body(request, limits.DDI_BODY_BYTES))


async def _base(ddi: Ddi, request: Request, device: Device) -> Response:
    def look(connection: Connection) -> tuple[Action | None, Action | None, dict[str, Any]]:
        row = connection.execute(select(devices).where(devices.c.id == device.id)).mappings().one()
        return (
            deployments.current(connection, device.id),
            deployments.installed(connection, device.id),
            dict(row),
        )

    action, installed, row = await ddi.database.read(look)
    document = ddi_messages.base(
        ddi.links(device),
        sleep_s=ddi.settings.poll_sleep_s,
        action=action,
        installed=installed,
        config_wanted=enrollment.config_is_wanted(
            row, ddi.clock.now_utc(), ddi.settings.config_data_max_age_s
        ),
    )
    answer = _hal(document)
    tag = f'"{hashlib.sha256(bytes(answer.body)).hexdigest()}"'
    answer.headers["ETag"] = tag
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    return answer


async def _config_data(ddi: Ddi, request: Request, device: Device) -> Response:
    mode, data = ddi_messages.read_config_data(await _json(request))
    await ddi.database.write(
        lambda connection: enrollment.put_attributes(connection, ddi.clock, device.id, mode=mode, data=data)
    )
    return Response()


async def _deployment_base(ddi: Ddi, request: Request, device: Device) -> Response:
    action_id = request.path_params["action_id"]

    def look(connection: Connection) -> tuple[Action, tuple[str, ...]]:
        action = _offered(connection, device, action_id, (State.PENDING, State.RETRIEVED, State.RUNNING))
        return action, _history(connection, request, action_id)

    action, messages = await ddi.database.read(look)
    if action.state is State.PENDING:

        def note(connection: Connection) -> None:
            # Decided again inside the write: a cancel may have come between.
            deployments.retrieve(connection, ddi.clock, _offered(connection, device, action_id, tuple(State)))

        await ddi.database.write(note)
    return _hal(ddi_messages.deployment_base(ddi.links(device), action, "deployment", messages))


async def _deployment_feedback(ddi: Ddi, request: Request, device: Device) -> Response:
    return await _report(ddi, request, device, Channel.DEPLOYMENT)


async def _cancel_feedback(ddi: Ddi, request: Request, device: Device) -> Response:
    return await _report(ddi, request, device, Channel.CANCEL)


async def _confirmation_feedback(ddi: Ddi, request: Request, device: Device) -> Response:
    return await _report(ddi, request, device, Channel.CONFIRMATION)


async def _report(ddi: Ddi, request: Request, device: Device, channel: Channel) -> Response:
    body = await _json(request)
    read = ddi_messages.read_confirmation if channel is Channel.CONFIRMATION else ddi_messages.read_feedback
    feedback = read(body)
    action_id = request.path_params["action_id"]
    await ddi.database.write(
        lambda connection: deployments.report(connection, ddi.clock, device.id, action_id, channel, feedback)
    )
    return Response()


async def _cancel_action(ddi: Ddi, request: Request, device: Device) -> Response:
    action_id = request.path_params["action_id"]
    action = await ddi.database.read(
        lambda connection: _offered(connection, device, action_id, (State.CANCELING,))
    )
    return _hal(ddi_messages.cancel_action(action))


async def _confirmation_base(ddi: Ddi, _request: Request, device: Device) -> Response:
    action = await ddi.database.read(lambda connection: deployments.current(connection, device.id))
    return _hal(ddi_messages.confirmation_base(ddi.links(device), action))


async def _confirmation_action(ddi: Ddi, request: Request, device: Device) -> Response:
    action_id = request.path_params["action_id"]

    def look(connection: Connection) -> tuple[Action, tuple[str, ...]]:
        action = _offered(connection, device, action_id, (State.WAIT_CONFIRM,))
        return action, _history(connection, request, action_id)

    action, messages = await ddi.database.read(look)
    return _hal(ddi_messages.deployment_base(ddi.links(device), action, "confirmation", messages))


async def _activate_auto_confirm(ddi: Ddi, request: Request, device: Device) -> Response:
    await _json(request)
    raise Refusal(
        403,
        "device.auto-confirm",
        "auto-confirmation is switched off for this tenant; nothing was changed",
        denial=Denial(kind="device.auto-confirm", actor=f"device:{device.id}", object=request.url.path),
    )


async def _deactivate_auto_confirm(_ddi: Ddi, _request: Request, _device: Device) -> Response:
    return Response()  # it is never active


async def _put_installed(ddi: Ddi, request: Request, device: Device) -> Response:
    name, version = ddi_messages.read_installed(await _json(request))

    def store(connection: Connection) -> None:
        known = connection.execute(
            select(releases.c.id).where(
                releases.c.tenant == device.tenant, releases.c.product == name, releases.c.version == version
            )
        ).first()
        if known is None:
            raise not_found(f"release {name} {version}")
        connection.execute(update(devices).where(devices.c.id == device.id).values(release=version))
        audit.append(
            connection,
            ddi.clock,
            "device.installed",
            actor=f"device:{device.id}",
            object=device.id,
            fields={"product": name, "version": version},
        )

    await ddi.database.write(store)
    return Response()


async def _installed_base(ddi: Ddi, request: Request, device: Device) -> Response:
    action_id = request.path_params["action_id"]

    def look(connection: Connection) -> tuple[Action, tuple[str, ...]]:
        action = deployments.of_device(connection, device.id, action_id)
        if action.state is not State.FINISHED:
            raise not_found(f"installation by action {action_id}")
        return action, _history(connection, request, action_id)

    action, messages = await ddi.database.read(look)
    return _hal(ddi_messages.deployment_base(ddi.links(device), action, "deployment", messages))


async def _module(ddi: Ddi, request: Request, device: Device) -> Action:
    """The active or installed action that this software module belongs to."""
    module_id = request.path_params["module_id"]

    def look(connection: Connection) -> Action:
        for action in (
            deployments.current(connection, device.id),
            deployments.installed(connection, device.id),
        ):
            if (
                action is not None
                and action.release_id == module_id
                and action.state is not State.WAIT_CONFIRM
            ):
                return action
        raise not_found(f"software module {module_id}")

    return await ddi.database.read(look)


async def _artifact_list(ddi: Ddi, request: Request, device: Device) -> Response:
    return _hal(ddi_messages.artifacts(ddi.links(device), await _module(ddi, request, device)))


async def _artifact(ddi: Ddi, request: Request, device: Device) -> Response:
    action, name = await _module(ddi, request, device), request.path_params["name"]
    if name == "release.json.MD5SUM":
        return PlainTextResponse(f"{action.md5}  release.json\n")
    if name != "release.json":
        raise not_found(f"artifact {name[:64]}")
    folder, _, _ = action.target_path.rpartition("/")
    path = f"{folder}/{action.digest}.release.json"
    return await _serve(ddi, request, device, "targets", path, artifacts.IMMUTABLE)


async def _telemetry(ddi: Ddi, request: Request, device: Device) -> Response:
    snapshots = ddi_messages.read_snapshots(await _json(request))
    await ddi.database.write(
        lambda connection: enrollment.add_telemetry(connection, ddi.clock, device.id, snapshots)
    )
    return Response(status_code=204)


async def _audit_ingest(ddi: Ddi, request: Request, device: Device) -> Response:
    component = request.path_params["component"]
    if component not in ingest.COMPONENTS:
        raise not_found(f"audit stream {component[:32]}")
    records = ingest.parse(await limits.read_body(request, limits.AUDIT_BODY_BYTES), component)
    claimed = request.query_params.get("from")
    if claimed is not None and claimed != str(records[0].seq):
        raise malformed("from", f"the seq of the first record, {records[0].seq}", repr(claimed))

    def store(connection: Connection) -> ingest.Answer:
        answer = ingest.store(connection, ddi.clock, device.id, component, records)
        audit.append(
            connection,
            ddi.clock,
            "audit.fork" if answer.fork_seq is not None else "audit.ingested",
            actor=f"device:{device.id}",
            object=f"audit:{device.id}/{component}",
            outcome="major" if answer.fork_seq is not None else "ok",
            fields={"stored": answer.stored, "next_seq": answer.next_seq, "gap": answer.gap},
        )
        return answer

    answer = await ddi.database.write(store)
    if answer.fork_seq is not None:
        raise Refusal(
            409,
            "audit.fork",
            f"audit {component}: record {answer.fork_seq} contradicts what is stored; the stream is frozen",
            extra={"next_seq": answer.next_seq},
        )
    if answer.gap:
        raise Refusal(
            409,
            "audit.gap",
            f"audit {component}: expected record {answer.next_seq} next; what came before it is stored",
            extra={"next_seq": answer.next_seq},
        )
    return Response(json.dumps({"next_seq": answer.next_seq}).encode(), media_type="application/json")


async def _tuf_metadata(ddi: Ddi, request: Request, device: Device) -> Response:
    path = request.path_params["path"]
    lasting = artifacts.NO_STORE if path == "timestamp.json" else artifacts.IMMUTABLE
    return await _serve(ddi, request, device, "metadata", path, lasting, media_type="application/json")


async def _tuf_target(ddi: Ddi, request: Request, device: Device) -> Response:
    return await _serve(ddi, request, device, "targets", request.path_params["path"], artifacts.IMMUTABLE)


async def _serve(
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


def _offered(connection: Connection, device: Device, action_id: int, states: tuple[State, ...]) -> Action:
    action = deployments.current(connection, device.id)
    if action is None or action.id != action_id or action.state not in states:
        raise not_found(f"action {action_id} of device {device.id}")
    return action


def _history(connection: Connection, request: Request, action_id: int) -> tuple[str, ...]:
    wanted = request.query_params.get("actionHistory", "0")
    try:
        count = int(wanted[:8])
    except ValueError as error:
        raise malformed("actionHistory", "a number", repr(wanted)) from error
    if count == 0:
        return ()
    return deployments.history(
        connection, action_id, _HISTORY_LIMIT if count < 0 else min(count, _HISTORY_LIMIT)
    )
