"""The device listener: its route table, and the checks in front of every route.

Every route goes through `_Device`: identity from the certificate, then tenant and id of the path against it (404 and
`device.impersonation` otherwise), then the rate limit. A handler never sees a request of anybody else.
"""

from typing import Final

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send
from tidewaiter_core.clock import format_utc

from tidewaiter_server import ddi_own, ddi_routes
from tidewaiter_server.boundary import Boundary, from_starlette, render_ddi
from tidewaiter_server.ddi_context import HAL, Ddi, Handler
from tidewaiter_server.errors import Denial, Refusal
from tidewaiter_server.protocol import PEER_CERTIFICATE

_READABLE: Final = ("application/json", "application/hal+json", "application/*", "*/*")
_PREFIX: Final = "/{tenant}/controller/v1/{controller_id}"
_ACTION_ID: Final = "{action_id:number}"


class _Number(Convertor[int]):
    """A number that fits every integer we store: longer ones are no route, instead of an accident in the database."""

    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("number", _Number())


def build(ddi: Ddi) -> ASGIApp:
    """The device application."""
    routes = [
        Route(path, _Device(ddi, handler, media=media), methods=[method])
        for method, path, handler, media in (
            ("GET", _PREFIX, ddi_routes.base, True),
            ("PUT", f"{_PREFIX}/configData", ddi_routes.config_data, True),
            ("GET", f"{_PREFIX}/deploymentBase/{_ACTION_ID}", ddi_routes.deployment_base, True),
            ("POST", f"{_PREFIX}/deploymentBase/{_ACTION_ID}/feedback", ddi_routes.deployment_feedback, True),
            ("GET", f"{_PREFIX}/cancelAction/{_ACTION_ID}", ddi_routes.cancel_action, True),
            ("POST", f"{_PREFIX}/cancelAction/{_ACTION_ID}/feedback", ddi_routes.cancel_feedback, True),
            ("GET", f"{_PREFIX}/confirmationBase", ddi_routes.confirmation_base, True),
            ("GET", f"{_PREFIX}/confirmationBase/{_ACTION_ID}", ddi_routes.confirmation_action, True),
            (
                "POST",
                f"{_PREFIX}/confirmationBase/{_ACTION_ID}/feedback",
                ddi_routes.confirmation_feedback,
                True,
            ),
            (
                "POST",
                f"{_PREFIX}/confirmationBase/activateAutoConfirm",
                ddi_routes.activate_auto_confirm,
                True,
            ),
            (
                "POST",
                f"{_PREFIX}/confirmationBase/deactivateAutoConfirm",
                ddi_routes.deactivate_auto_confirm,
                False,
            ),
            ("PUT", f"{_PREFIX}/installedBase", ddi_routes.put_installed, True),
            ("GET", f"{_PREFIX}/installedBase/{_ACTION_ID}", ddi_routes.installed_base, True),
            (
                "GET",
                f"{_PREFIX}/softwaremodules/{{module_id:number}}/artifacts",
                ddi_routes.artifact_list,
                True,
            ),
            (
                "GET",
                f"{_PREFIX}/softwaremodules/{{module_id:number}}/artifacts/{{name}}",
                ddi_routes.artifact,
                False,
            ),
            ("POST", f"{_PREFIX}/tw/telemetry", ddi_own.telemetry, True),
            ("POST", f"{_PREFIX}/tw/audit/{{component}}", ddi_own.audit_ingest, False),
            ("GET", "/tuf/metadata/{path:path}", ddi_own.tuf_metadata, False),
            ("GET", "/tuf/targets/{path:path}", ddi_own.tuf_target, False),
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
            f"Accept {accept[:80]!r}: this server speaks {HAL}; nothing was sent",
        )
    if request.method in ("POST", "PUT"):
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("application/json", "application/hal+json"):
            raise Refusal(
                415,
                "request.media-type",
                f"Content-Type {kind[:80]!r}: expected application/json; nothing was changed",
            )
