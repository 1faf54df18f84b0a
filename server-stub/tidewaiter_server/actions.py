"""Actions in the database: which one a device is offered, what its reports do to it, how one is canceled.

Each function runs inside a transaction of the writer (or a reader's snapshot); the decisions are in `actions_rules`.
A device has one offered action at a time: its oldest open one.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, insert, select, update
from tidewaiter_core.clock import Clock, format_utc

from tidewaiter_server import actions_rules, audit
from tidewaiter_server.actions_rules import Channel, State, Verdict
from tidewaiter_server.errors import Refusal, not_found
from tidewaiter_server.schema import action_status, actions, deployments, devices, releases

FEEDBACK_LIMIT: Final = 1000
ROWS_LIMIT: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """An action with what its device needs to know of deployment and release."""

    id: int
    device_id: str
    deployment_id: int
    state: State
    resume_state: State
    forced: bool
    confirm: bool
    window: str | None
    feedback_count: int
    release_id: int
    product: str
    version: str
    target_path: str
    digest: str
    length_bytes: int
    sha1: str
    md5: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What a device reported, already within its limits."""

    execution: str
    finished: str = "none"
    code: int | None = None
    details: tuple[str, ...] = ()
    progress_cnt: int | None = None
    progress_of: int | None = None
    device_utc_ms: int | None = None

    def digest(self, channel: Channel) -> str:
        """Equal reports have equal digests: how a repeated delivery is recognized."""
        parts = [channel, self.execution, self.finished, self.code, self.details]
        parts += [self.progress_cnt, self.progress_of, self.device_utc_ms]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


_ACTION = (
    select(
        actions.c.id,
        actions.c.device_id,
        actions.c.deployment_id,
        actions.c.state,
        actions.c.resume_state,
        actions.c.feedback_count,
        deployments.c.forced,
        deployments.c.confirm,
        deployments.c.window,
        releases.c.id.label("release_id"),
        releases.c.product,
        releases.c.version,
        releases.c.target_path,
        releases.c.digest,
        releases.c.length_bytes,
        releases.c.sha1,
        releases.c.md5,
    )
    .join(deployments, deployments.c.id == actions.c.deployment_id)
    .join(releases, releases.c.id == deployments.c.release_id)
)


def _action(row: Any) -> Action | None:
    if row is None:
        return None
    values = dict(row._mapping)
    values["state"] = State(values["state"])
    values["resume_state"] = State(values["resume_state"] or State.RUNNING)
    return Action(**values)


def current(connection: Connection, device_id: str) -> Action | None:
    """The action this device is offered now."""
    return _action(
        connection.execute(
            _ACTION.where(actions.c.device_id == device_id, actions.c.open).order_by(actions.c.id).limit(1)
        ).first()
    )


def installed(connection: Connection, device_id: str) -> Action | None:
    """The action this device finished last."""
    finished = _ACTION.where(actions.c.device_id == device_id, actions.c.state == State.FINISHED)
    return _action(
        connection.execute(finished.order_by(actions.c.closed_utc.desc(), actions.c.id.desc())).first()
    )


def of_device(connection: Connection, device_id: str, action_id: int) -> Action:
    """This action, if it is this device's; 404 otherwise."""
    found = _action(
        connection.execute(_ACTION.where(actions.c.id == action_id, actions.c.device_id == device_id)).first()
    )
    if found is None:
        raise not_found(f"action {action_id} of device {device_id}")
    return found


def retrieve(connection: Connection, clock: Clock, action: Action) -> None:
    """Note that the device fetched its deployment, the first time."""
    state = actions_rules.retrieve(action.state)
    if state is action.state:
        return
    connection.execute(update(actions).where(actions.c.id == action.id).values(state=state))
    audit.append(
        connection,
        clock,
        "action.retrieved",
        actor=f"device:{action.device_id}",
        object=f"action:{action.id}",
    )


def report(
    connection: Connection, clock: Clock, device_id: str, action_id: int, channel: Channel, feedback: Feedback
) -> None:
    """Take a device's report: state, history and audit record in one transaction; a repeated delivery changes nothing.

    Raises:
        Refusal: 404 not this device's or not on this route now, 410 over, 429 beyond 1000 reports.
    """
    action = of_device(connection, device_id, action_id)
    digest = feedback.digest(channel)
    step = actions_rules.report(
        action.state, channel, feedback.execution, feedback.finished, resume=action.resume_state
    )
    if step.verdict is Verdict.CLOSED:
        raise Refusal(410, "action.closed", f"action {action_id}: is {action.state}; the report was dropped")
    changes = step.verdict is Verdict.ACCEPTED and step.state is not action.state
    if (feedback.device_utc_ms is not None or not changes) and _is_known(connection, action_id, digest):
        # Delivered again. Without a time stamp a report that changes the state is a new one, for example the
        # second cancel that the device rejects.
        return
    offered = current(connection, device_id)
    if step.verdict is Verdict.ABSENT or offered is None or offered.id != action_id:
        raise not_found(f"{channel} of action {action_id}, which is {action.state}")
    if step.state.is_open and action.feedback_count >= FEEDBACK_LIMIT:
        # The final report still passes: a talkative device must be able to end its action.
        raise Refusal(
            429,
            "request.quota",
            f"action {action_id}: {FEEDBACK_LIMIT} reports are stored; this one was dropped",
            headers={"Retry-After": "3600"},
        )
    _store_status(connection, clock, action, channel, feedback, digest)
    _move(connection, clock, action, step.state, feedback)
    audit.append(
        connection,
        clock,
        f"action.{channel}",
        actor=f"device:{device_id}",
        object=f"action:{action_id}",
        fields={
            "execution": feedback.execution,
            "finished": feedback.finished,
            "code": feedback.code,
            "from": action.state,
            "to": step.state,
        },
    )


def history(connection: Connection, action_id: int, limit: int) -> tuple[str, ...]:
    """The texts of the last reports, newest first."""
    rows = connection.execute(
        select(action_status.c.execution, action_status.c.details)
        .where(action_status.c.action_id == action_id)
        .order_by(action_status.c.seq.desc())
        .limit(limit)
    )
    return tuple(text for row in rows for text in (json.loads(row.details) or [row.execution]))


def cancel_open(connection: Connection, now: str, device_id: str) -> int:
    rows = (
        connection.execute(
            select(actions.c.id)
            .where(actions.c.device_id == device_id, actions.c.open)
            .order_by(actions.c.id)
        )
        .scalars()
        .all()
    )
    for position, action_id in enumerate(rows):
        cancel_one(connection, now, action_id, offered=position == 0)
    return len(rows)


def cancel_one(connection: Connection, now: str, action_id: int, *, offered: bool) -> None:
    state = State(connection.execute(select(actions.c.state).where(actions.c.id == action_id)).scalar_one())
    if state is State.CANCELING:
        return
    after = actions_rules.cancel(state, offered=offered)
    values: dict[str, Any] = {"state": after, "open": after.is_open, "resume_state": state}
    if not after.is_open:
        values["closed_utc"] = now
    connection.execute(update(actions).where(actions.c.id == action_id).values(**values))


def _is_known(connection: Connection, action_id: int, digest: str) -> bool:
    return (
        connection.execute(
            select(action_status.c.seq).where(
                action_status.c.action_id == action_id, action_status.c.digest == digest
            )
        ).first()
        is not None
    )


def _store_status(
    connection: Connection, clock: Clock, action: Action, channel: Channel, feedback: Feedback, digest: str
) -> None:
    values = {
        "utc": format_utc(clock.now_utc()),
        "device_utc_ms": feedback.device_utc_ms,
        "channel": channel,
        "execution": feedback.execution,
        "finished": feedback.finished,
        "code": feedback.code,
        "details": json.dumps(feedback.details),
        "progress_cnt": feedback.progress_cnt,
        "progress_of": feedback.progress_of,
        "digest": digest,
    }
    mine = action_status.c.action_id == action.id
    last = connection.execute(
        select(action_status.c.seq, action_status.c.execution)
        .where(mine)
        .order_by(action_status.c.seq.desc())
        .limit(1)
    ).first()
    rows = connection.execute(select(func.count()).where(mine).select_from(action_status)).scalar_one()
    if last is not None and rows >= ROWS_LIMIT and last.execution == feedback.execution:
        connection.execute(
            update(action_status).where(mine, action_status.c.seq == last.seq).values(**values)
        )
        return
    seq = last.seq + 1 if last else 0
    connection.execute(insert(action_status).values(action_id=action.id, seq=seq, **values))


def _move(connection: Connection, clock: Clock, action: Action, state: State, feedback: Feedback) -> None:
    values: dict[str, Any] = {
        "state": state,
        "open": state.is_open,
        "feedback_count": action.feedback_count + 1,
    }
    if not state.is_open:
        values |= {
            "closed_utc": format_utc(clock.now_utc()),
            "code": feedback.code,
            "detail": feedback.details[0] if feedback.details else "",
        }
        # What runs on the device may be another release now: ask for the inventory.
        connection.execute(update(devices).where(devices.c.id == action.device_id).values(config_wanted=True))
    connection.execute(update(actions).where(actions.c.id == action.id).values(**values))
