"""What the management API shows: rows of the database as JSON documents. Reads only."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Select, select

from tidewaiter_server import schema
from tidewaiter_server.errors import not_found
from tidewaiter_server.schema import action_status, actions, deployments, devices, releases

Document = dict[str, Any]
_DEVICE_COLUMNS = tuple(column for column in devices.c if column.name not in ("config_wanted", "config_utc"))


def devices_page(connection: Connection, tenant: str, after: str, limit: int) -> Document:
    query = (
        select(*_DEVICE_COLUMNS)
        .where(devices.c.tenant == tenant, devices.c.id > after)
        .order_by(devices.c.id)
    )
    return _page(_rows(connection, query.limit(limit + 1)), limit, "id")


def device(connection: Connection, tenant: str, device_id: str) -> Document:
    """One device with its attributes, keys and audit streams."""
    row = _must_exist(connection, tenant, device_id)
    attributes = connection.execute(
        select(schema.device_attributes.c.key, schema.device_attributes.c.value)
        .where(schema.device_attributes.c.device_id == device_id)
        .order_by(schema.device_attributes.c.key)
    )
    keys = select(schema.device_keys).where(schema.device_keys.c.device_id == device_id)
    streams = select(schema.audit_streams).where(schema.audit_streams.c.device_id == device_id)
    return row | {
        "attributes": dict(attributes.tuples().all()),
        "keys": _without(_rows(connection, keys), "device_id"),
        "audit": _without(_rows(connection, streams), "device_id"),
    }


def device_actions(connection: Connection, tenant: str, device_id: str) -> Document:
    """The device's actions, newest first, each with its history."""
    _must_exist(connection, tenant, device_id)
    return {"items": _actions(connection, actions.c.device_id == device_id, descending=True, history=True)}


def telemetry(connection: Connection, tenant: str, device_id: str, limit: int) -> Document:
    """The latest snapshot and the points before it, newest first."""
    _must_exist(connection, tenant, device_id)
    latest = connection.execute(
        select(schema.telemetry_latest).where(schema.telemetry_latest.c.device_id == device_id)
    ).first()
    points = connection.execute(
        select(schema.telemetry_points)
        .where(schema.telemetry_points.c.device_id == device_id)
        .order_by(schema.telemetry_points.c.id.desc())
        .limit(limit)
    )

    def shown(row: Any) -> Document:
        return {"received_utc": row.received_utc, "snapshot": json.loads(row.document)}

    return {"latest": shown(latest) if latest else None, "items": [shown(row) for row in points]}


def device_audit(
    connection: Connection, tenant: str, device_id: str, component: str, after: int, limit: int
) -> Document:
    """Stored records of a device's chain, as the device wrote them."""
    _must_exist(connection, tenant, device_id)
    table = schema.audit_records
    rows = connection.execute(
        select(table)
        .where(table.c.device_id == device_id, table.c.component == component, table.c.seq > after)
        .order_by(table.c.seq, table.c.received_utc)
        .limit(limit + 1)
    ).mappings()
    items = [
        {
            "seq": row["seq"],
            "received_utc": row["received_utc"],
            "sha256": row["sha256"],
            "record": json.loads(row["record"]),
        }
        for row in rows
    ]
    return _page(items, limit, "seq")


def release(connection: Connection, tenant: str, release_id: int) -> Document:
    rows = _rows(connection, select(releases).where(releases.c.tenant == tenant, releases.c.id == release_id))
    if not rows:
        raise not_found(f"release {release_id}")
    return _release(rows[0])


def releases_page(connection: Connection, tenant: str, after: int, limit: int) -> Document:
    query = select(releases).where(releases.c.tenant == tenant, releases.c.id > after).order_by(releases.c.id)
    return _page([_release(row) for row in _rows(connection, query.limit(limit + 1))], limit, "id")


def deployment(connection: Connection, tenant: str, deployment_id: int) -> Document:
    """A deployment with the state of each of its actions."""
    query = select(deployments).where(deployments.c.tenant == tenant, deployments.c.id == deployment_id)
    rows = _rows(connection, query)
    if not rows:
        raise not_found(f"deployment {deployment_id}")
    return rows[0] | {
        "actions": _actions(connection, actions.c.deployment_id == deployment_id, history=False)
    }


def deployments_page(connection: Connection, tenant: str, after: int, limit: int) -> Document:
    query = select(deployments).where(deployments.c.tenant == tenant, deployments.c.id > after)
    return _page(_rows(connection, query.order_by(deployments.c.id).limit(limit + 1)), limit, "id")


def server_audit_page(connection: Connection, after: int, limit: int) -> Document:
    table = schema.server_audit
    rows = _rows(connection, select(table).where(table.c.seq > after).order_by(table.c.seq).limit(limit + 1))
    return _page([row | {"fields": json.loads(row["fields"])} for row in rows], limit, "seq")


def _must_exist(connection: Connection, tenant: str, device_id: str) -> Document:
    query = select(*_DEVICE_COLUMNS).where(devices.c.tenant == tenant, devices.c.id == device_id)
    rows = _rows(connection, query)
    if not rows:
        raise not_found(f"device {device_id}")
    return rows[0]


def _actions(
    connection: Connection, which: Any, *, descending: bool = False, history: bool
) -> list[Document]:
    order = actions.c.id.desc() if descending else actions.c.id
    query = (
        select(
            actions.c.id,
            actions.c.device_id,
            actions.c.deployment_id,
            actions.c.state,
            actions.c.code,
            actions.c.detail,
            actions.c.created_utc,
            actions.c.closed_utc,
            deployments.c.release_id,
            deployments.c.forced,
            deployments.c.confirm,
            deployments.c.window,
            releases.c.product,
            releases.c.version,
        )
        .join(deployments, deployments.c.id == actions.c.deployment_id)
        .join(releases, releases.c.id == deployments.c.release_id)
        .where(which)
        .order_by(order)
    )
    found = _rows(connection, query)
    return [row | {"history": _history(connection, row["id"])} for row in found] if history else found


def _history(connection: Connection, action_id: int) -> list[Document]:
    query = select(action_status).where(action_status.c.action_id == action_id).order_by(action_status.c.seq)
    rows = _without(_rows(connection, query), "action_id", "digest")
    return [row | {"details": json.loads(row["details"])} for row in rows]


def _release(row: Mapping[str, Any]) -> Document:
    return {**row, "hw": json.loads(row["hw"])}


def _rows(connection: Connection, query: Select[Any]) -> list[Document]:
    return [dict(row) for row in connection.execute(query).mappings()]


def _without(rows: Iterable[Mapping[str, Any]], *names: str) -> list[Document]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def _page(items: Sequence[Document], limit: int, key: str) -> Document:
    """`next` is what to pass as `after` for the following page; null at the end."""
    shown = list(items[:limit])
    return {"items": shown, "next": shown[-1][key] if len(items) > limit else None}
