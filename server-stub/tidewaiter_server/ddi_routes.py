"""The handlers of DDI version 1, as the public hawkBit document describes them."""

import hashlib
from typing import Any, Final

from sqlalchemy import Connection, select, update
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from tidewaiter_server import actions, artifacts, audit, ddi_messages
from tidewaiter_server import devices as enrollment
from tidewaiter_server.actions import Action
from tidewaiter_server.actions_rules import Channel, State
from tidewaiter_server.ddi_context import Ddi, hal, read_json, serve_file
from tidewaiter_server.errors import Denial, Refusal, malformed, not_found
from tidewaiter_server.identity import Device
from tidewaiter_server.schema import devices, releases

_HISTORY_LIMIT: Final = 100


async def base(ddi: Ddi, request: Request, device: Device) -> Response:
    def look(connection: Connection) -> tuple[Action | None, Action | None, dict[str, Any]]:
        row = connection.execute(select(devices).where(devices.c.id == device.id)).mappings().one()
        return (
            actions.current(connection, device.id),
            actions.installed(connection, device.id),
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
    answer = hal(document)
    tag = f'"{hashlib.sha256(bytes(answer.body)).hexdigest()}"'
    answer.headers["ETag"] = tag
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"ETag": tag})
    return answer


async def config_data(ddi: Ddi, request: Request, device: Device) -> Response:
    mode, data = ddi_messages.read_config_data(await read_json(request))
    await ddi.database.write(
        lambda connection: enrollment.put_attributes(connection, ddi.clock, device.id, mode=mode, data=data)
    )
    return Response()


async def deployment_base(ddi: Ddi, request: Request, device: Device) -> Response:
    action_id = request.path_params["action_id"]

    def look(connection: Connection) -> tuple[Action, tuple[str, ...]]:
        action = _offered(connection, device, action_id, (State.PENDING, State.RETRIEVED, State.RUNNING))
        return action, _history(connection, request, action_id)

    action, messages = await ddi.database.read(look)
    if action.state is State.PENDING:

        def note(connection: Connection) -> None:
            # Decided again inside the write: a cancel may have come between.
            actions.retrieve(connection, ddi.clock, _offered(connection, device, action_id, tuple(State)))

        await ddi.database.write(note)
    return hal(ddi_messages.deployment_base(ddi.links(device), action, "deployment", messages))


async def deployment_feedback(ddi: Ddi, request: Request, device: Device) -> Response:
    return await _report(ddi, request, device, Channel.DEPLOYMENT)


async def cancel_feedback(ddi: Ddi, request: Request, device: Device) -> Response:
    return await _report(ddi, request, device, Channel.CANCEL)


async def confirmation_feedback(ddi: Ddi, request: Request, device: Device) -> Response:
    return await _report(ddi, request, device, Channel.CONFIRMATION)


async def _report(ddi: Ddi, request: Request, device: Device, channel: Channel) -> Response:
    body = await read_json(request)
    read = ddi_messages.read_confirmation if channel is Channel.CONFIRMATION else ddi_messages.read_feedback
    feedback = read(body)
    action_id = request.path_params["action_id"]
    await ddi.database.write(
        lambda connection: actions.report(connection, ddi.clock, device.id, action_id, channel, feedback)
    )
    return Response()


async def cancel_action(ddi: Ddi, request: Request, device: Device) -> Response:
    action_id = request.path_params["action_id"]
    action = await ddi.database.read(
        lambda connection: _offered(connection, device, action_id, (State.CANCELING,))
    )
    return hal(ddi_messages.cancel_action(action))


async def confirmation_base(ddi: Ddi, _request: Request, device: Device) -> Response:
    action = await ddi.database.read(lambda connection: actions.current(connection, device.id))
    return hal(ddi_messages.confirmation_base(ddi.links(device), action))


async def confirmation_action(ddi: Ddi, request: Request, device: Device) -> Response:
    action_id = request.path_params["action_id"]

    def look(connection: Connection) -> tuple[Action, tuple[str, ...]]:
        action = _offered(connection, device, action_id, (State.WAIT_CONFIRM,))
        return action, _history(connection, request, action_id)

    action, messages = await ddi.database.read(look)
    return hal(ddi_messages.deployment_base(ddi.links(device), action, "confirmation", messages))


async def activate_auto_confirm(ddi: Ddi, request: Request, device: Device) -> Response:
    await read_json(request)
    raise Refusal(
        403,
        "device.auto-confirm",
        "auto-confirmation is switched off for this tenant; nothing was changed",
        denial=Denial(kind="device.auto-confirm", actor=f"device:{device.id}", object=request.url.path),
    )


async def deactivate_auto_confirm(_ddi: Ddi, _request: Request, _device: Device) -> Response:
    return Response()  # it is never active


async def put_installed(ddi: Ddi, request: Request, device: Device) -> Response:
    name, version = ddi_messages.read_installed(await read_json(request))

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


async def installed_base(ddi: Ddi, request: Request, device: Device) -> Response:
    action_id = request.path_params["action_id"]

    def look(connection: Connection) -> tuple[Action, tuple[str, ...]]:
        action = actions.of_device(connection, device.id, action_id)
        if action.state is not State.FINISHED:
            raise not_found(f"installation by action {action_id}")
        return action, _history(connection, request, action_id)

    action, messages = await ddi.database.read(look)
    return hal(ddi_messages.deployment_base(ddi.links(device), action, "deployment", messages))


async def _module(ddi: Ddi, request: Request, device: Device) -> Action:
    """The active or installed action that this software module belongs to."""
    module_id = request.path_params["module_id"]

    def look(connection: Connection) -> Action:
        for action in (
            actions.current(connection, device.id),
            actions.installed(connection, device.id),
        ):
            if (
                action is not None
                and action.release_id == module_id
                and action.state is not State.WAIT_CONFIRM
            ):
                return action
        raise not_found(f"software module {module_id}")

    return await ddi.database.read(look)


async def artifact_list(ddi: Ddi, request: Request, device: Device) -> Response:
    return hal(ddi_messages.artifacts(ddi.links(device), await _module(ddi, request, device)))


async def artifact(ddi: Ddi, request: Request, device: Device) -> Response:
    action, name = await _module(ddi, request, device), request.path_params["name"]
    if name == "release.json.MD5SUM":
        return PlainTextResponse(f"{action.md5}  release.json\n")
    if name != "release.json":
        raise not_found(f"artifact {name[:64]}")
    folder, _, _ = action.target_path.rpartition("/")
    path = f"{folder}/{action.digest}.release.json"
    return await serve_file(ddi, request, device, "targets", path, artifacts.IMMUTABLE)


def _offered(connection: Connection, device: Device, action_id: int, states: tuple[State, ...]) -> Action:
    action = actions.current(connection, device.id)
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
    return actions.history(connection, action_id, _HISTORY_LIMIT if count < 0 else min(count, _HISTORY_LIMIT))
