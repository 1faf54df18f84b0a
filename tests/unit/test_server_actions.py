"""The action table, walked completely, and reports in the database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select, update
from tidewaiter_server import actions, actions_rules, db, deployments
from tidewaiter_server.actions import Feedback
from tidewaiter_server.actions_rules import CONFIRMATIONS, EXECUTIONS, FINISHED, Channel, State, Verdict
from tidewaiter_server.errors import Refusal
from tidewaiter_server.schema import action_status, devices, releases, server_audit
from tidewaiter_server.schema import actions as table

from tests.sim.clock import FakeClock

CLOSED = [state for state in State if not state.is_open]


@pytest.mark.parametrize("channel", Channel)
@pytest.mark.parametrize("state", CLOSED)
def test_nothing_moves_a_closed_action(state: State, channel: Channel) -> None:
    for execution in EXECUTIONS + CONFIRMATIONS:
        for finished in FINISHED:
            step = actions_rules.report(state, channel, execution, finished)
            assert (step.verdict, step.state) == (Verdict.CLOSED, state)


@pytest.mark.parametrize("state", [state for state in State if state.is_open])
def test_only_a_closed_deployment_report_or_a_done_cancel_ends_an_action(state: State) -> None:
    ends = set()
    for channel in Channel:
        words = CONFIRMATIONS if channel is Channel.CONFIRMATION else EXECUTIONS
        for execution in words:
            for finished in FINISHED:
                step = actions_rules.report(state, channel, execution, finished)
                if not step.state.is_open:
                    ends.add((channel, execution, finished, step.state))
    by_deployment = {
        (Channel.DEPLOYMENT, "closed", "success", State.FINISHED),
        (Channel.DEPLOYMENT, "closed", "none", State.FINISHED),
        (Channel.DEPLOYMENT, "closed", "failure", State.ERROR),
    }
    by_cancel = {
        (Channel.CANCEL, "closed", "success", State.CANCELED),
        (Channel.CANCEL, "closed", "none", State.CANCELED),
    }
    expected = {
        State.WAIT_CONFIRM: set(),
        State.CANCELING: by_deployment | by_cancel,
    }.get(state, by_deployment)
    assert ends == expected


def test_a_rejected_cancel_returns_an_unconfirmed_action_to_waiting() -> None:
    step = actions_rules.report(State.CANCELING, Channel.CANCEL, "rejected", resume=State.WAIT_CONFIRM)
    assert step.state is State.WAIT_CONFIRM


@pytest.mark.parametrize("execution", ["rejected", "canceled"])
def test_rejected_and_canceled_are_warnings_on_a_deployment(execution: str) -> None:
    step = actions_rules.report(State.RETRIEVED, Channel.DEPLOYMENT, execution)
    assert (step.verdict, step.state) == (Verdict.ACCEPTED, State.RETRIEVED)


def test_an_action_never_offered_is_canceled_at_once() -> None:
    assert actions_rules.cancel(State.PENDING, offered=False) is State.CANCELED
    assert actions_rules.cancel(State.RUNNING, offered=True) is State.CANCELING
    assert actions_rules.cancel(State.FINISHED, offered=True) is State.FINISHED


class World:
    """A database with one device, one release and one running action."""

    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock()
        db.create(directory)
        self.database = db.Database(directory)
        self.deployment, self.action = self.database.write_now(self._fill)

    def _fill(self, connection: Connection) -> tuple[int, int]:
        connection.execute(
            insert(devices).values(
                id="DEV-1", tenant="default", model="m", hw="h", serial="DEV-1", state="active",
                config_wanted=False, created_utc="",
            )
        )  # fmt: skip
        connection.execute(
            insert(releases).values(
                id=1, tenant="default", product="p", version="1", target_path="x", digest="d", length_bytes=1,
                sha1="", md5="", sequence=1, hw="[]", security_fix=False, imported_utc="",
            )
        )  # fmt: skip
        return self.deploy(connection)

    def deploy(self, connection: Connection) -> tuple[int, int]:
        number = deployments.create(
            connection, self.clock, tenant="default", release_id=1, device_ids=["DEV-1"], forced=False,
            confirm=False, window=None, actor="test",
        )  # fmt: skip
        return number, int(connection.execute(select(func.max(table.c.id))).scalar_one())

    def report(self, execution: str, channel: Channel = Channel.DEPLOYMENT, **values: object) -> None:
        feedback = Feedback(execution=execution, **values)  # type: ignore[arg-type]
        self.database.write_now(
            lambda connection: actions.report(connection, self.clock, "DEV-1", self.action, channel, feedback)
        )

    def state(self, action: int = 0) -> State:
        query = select(table.c.state).where(table.c.id == (action or self.action))
        return State(self.database.read_now(lambda connection: connection.execute(query).scalar_one()))

    def count(self, what: object) -> int:
        query = select(func.count()).select_from(what)  # type: ignore[arg-type]
        return int(self.database.read_now(lambda connection: connection.execute(query).scalar_one()))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


def test_a_report_and_its_audit_record_are_one(world: World) -> None:
    before = world.count(server_audit)
    world.report("download")
    assert world.count(server_audit) == before + 1
    assert world.state() is State.RUNNING


def test_a_refused_report_leaves_no_trace(world: World) -> None:
    world.report("closed", finished="success")
    before = world.count(server_audit), world.count(action_status)
    with pytest.raises(Refusal) as refused:
        world.report("download")
    assert refused.value.status == 410
    assert (world.count(server_audit), world.count(action_status)) == before


def test_progress_beyond_fifty_rows_replaces_the_last_row(world: World) -> None:
    for percent in range(80):
        world.report("download", progress_cnt=percent, progress_of=100, device_utc_ms=percent)
    assert world.count(action_status) == 50
    query = select(action_status.c.progress_cnt).order_by(action_status.c.seq.desc()).limit(1)
    assert world.database.read_now(lambda connection: connection.execute(query).scalar_one()) == 79


def test_the_thousand_and_first_report_is_refused_but_the_closing_one_passes(world: World) -> None:
    world.database.write_now(
        lambda c: c.execute(update(table).values(feedback_count=actions.FEEDBACK_LIMIT)) and None
    )
    with pytest.raises(Refusal) as refused:
        world.report("download")
    assert (refused.value.status, refused.value.code) == (429, "request.quota")
    world.report("closed", finished="failure", details=("updater.chunk",))
    assert world.state() is State.ERROR


def test_a_second_cancel_may_be_rejected_like_the_first(world: World) -> None:
    for _ in range(2):
        world.database.write_now(
            lambda connection: deployments.cancel(
                connection, world.clock, tenant="default", deployment_id=world.deployment, actor="test"
            )
        )
        assert world.state() is State.CANCELING
        world.report("rejected", Channel.CANCEL)
        assert world.state() is State.RUNNING or world.state() is State.PENDING


def test_a_third_deployment_drops_the_second_that_was_never_offered(world: World) -> None:
    _, second = world.database.write_now(world.deploy)
    world.database.write_now(world.deploy)
    assert world.state() is State.CANCELING
    assert world.state(second) is State.CANCELED


def test_a_deployment_for_an_unknown_device_offers_nothing_to_anybody(world: World) -> None:
    before = world.count(table)
    with pytest.raises(Refusal, match="NOBODY"):
        world.database.write_now(
            lambda connection: deployments.create(
                connection, world.clock, tenant="default", release_id=1, device_ids=["DEV-1", "NOBODY"],
                forced=False, confirm=False, window=None, actor="test",
            )
        )  # fmt: skip
    assert world.count(table) == before
