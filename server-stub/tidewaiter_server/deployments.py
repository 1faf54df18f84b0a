"""Deployments: a release offered to devices, withdrawn, its maintenance window changed. The simple precursor of rollouts.

A newer deployment cancels what is open on its devices and waits until that has ended.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select, update
from tidewaiter_core.clock import Clock, format_utc

from tidewaiter_server import audit
from tidewaiter_server.actions import cancel_one, cancel_open, current
from tidewaiter_server.actions_rules import State
from tidewaiter_server.errors import malformed, not_found
from tidewaiter_server.schema import actions, deployments, devices, releases


def create(
    connection: Connection,
    clock: Clock,
    *,
    tenant: str,
    release_id: int,
    device_ids: Sequence[str],
    forced: bool,
    confirm: bool,
    window: str | None,
    actor: str,
) -> int:
    """Offer a release to devices; all of them or, when one is unknown, none."""
    wanted = sorted(set(device_ids))
    known = (
        connection.execute(
            select(devices.c.id).where(
                devices.c.tenant == tenant, devices.c.state == "active", devices.c.id.in_(wanted)
            )
        )
        .scalars()
        .all()
    )
    if missing := sorted(set(wanted) - set(known)):
        raise malformed("device_ids", "active devices of this tenant", ", ".join(missing))
    if (
        connection.execute(
            select(releases.c.id).where(releases.c.id == release_id, releases.c.tenant == tenant)
        ).first()
        is None
    ):
        raise malformed("release_id", "an imported release", str(release_id))
    now = format_utc(clock.now_utc())
    inserted = connection.execute(
        insert(deployments).values(
            tenant=tenant,
            release_id=release_id,
            forced=forced,
            confirm=confirm,
            window=window,
            created_utc=now,
            created_by=actor,
        )
    )
    key = inserted.inserted_primary_key
    deployment_id = int(key[0]) if key else 0
    replaced = sum(cancel_open(connection, now, device_id) for device_id in wanted)
    first = State.WAIT_CONFIRM if confirm else State.PENDING
    connection.execute(
        insert(actions),
        [
            {
                "device_id": one,
                "deployment_id": deployment_id,
                "state": first,
                "open": True,
                "created_utc": now,
            }
            for one in wanted
        ],
    )
    audit.append(
        connection,
        clock,
        "deployment.created",
        actor=actor,
        object=f"deployment:{deployment_id}",
        fields={
            "release": release_id,
            "devices": len(wanted),
            "first": wanted[0],
            "forced": forced,
            "confirm": confirm,
            "window": window,
            "replaced": replaced,
        },
    )
    return deployment_id


def cancel(connection: Connection, clock: Clock, *, tenant: str, deployment_id: int, actor: str) -> None:
    """Withdraw a deployment: every open action is canceled; the device decides whether it is too late."""
    _must_exist(connection, tenant, deployment_id)
    now = format_utc(clock.now_utc())
    rows = connection.execute(
        select(actions.c.id, actions.c.device_id).where(
            actions.c.deployment_id == deployment_id, actions.c.open
        )
    ).all()
    for row in rows:
        offered = current(connection, row.device_id)
        cancel_one(connection, now, row.id, offered=offered is not None and offered.id == row.id)
    audit.append(
        connection,
        clock,
        "deployment.canceled",
        actor=actor,
        object=f"deployment:{deployment_id}",
        fields={"actions": len(rows)},
    )


def set_window(
    connection: Connection, clock: Clock, *, tenant: str, deployment_id: int, window: str | None, actor: str
) -> None:
    """Open or close the maintenance window of a deployment; the devices see it at their next poll."""
    _must_exist(connection, tenant, deployment_id)
    connection.execute(update(deployments).where(deployments.c.id == deployment_id).values(window=window))
    audit.append(
        connection,
        clock,
        "deployment.window",
        actor=actor,
        object=f"deployment:{deployment_id}",
        fields={"window": window},
    )


def _must_exist(connection: Connection, tenant: str, deployment_id: int) -> None:
    mine = select(deployments.c.id).where(deployments.c.id == deployment_id, deployments.c.tenant == tenant)
    if connection.execute(mine).first() is None:
        raise not_found(f"deployment {deployment_id}")
