"""Update consent: bound to one release, bounded in time, durable, and never guessed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from tidewaiter_agent.consent import ConsentStore
from tidewaiter_agent.consent_values import ConsentRecord, Decision, Subject
from tidewaiter_agent.errors import ConsentError
from tidewaiter_core.errors import StateError

from tests.sim.clock import FakeClock

A, B = "a" * 64, "b" * 64
BOOT, LATER_BOOT = "1" * 32, "2" * 32


def subject(digest: str = A) -> Subject:
    return Subject(digest=digest, product="injector", version="2.1", notes={"en": "fixes"})


class Bench:
    def __init__(self, directory: Path) -> None:
        self.file = directory / "consent.json"
        self.clock = FakeClock()
        self.records: list[ConsentRecord] = []

    def store(self, *, boot_id: str = BOOT) -> ConsentStore:
        return ConsentStore(
            self.file,
            clock=self.clock,
            boot_id=boot_id,
            ask_timeout_s=300,
            grant_max_s=14400,
            on_record=self.records.append,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_first_question_raises_one_prompt_and_repeats_none(bench: Bench) -> None:
    store = bench.store()
    assert [store.ask(subject(), reason="r") for _ in range(3)] == [Decision.PENDING] * 3
    assert len(store.prompts()) == 1


def test_yes_is_a_grant_for_this_release_only(bench: Bench) -> None:
    store = bench.store()
    store.ask(subject(A), reason="r")
    store.answer(store.prompts()[0].id, yes=True, who="uid:1000")
    assert store.ask(subject(A), reason="r") is Decision.GRANTED
    assert store.ask(subject(B), reason="r") is Decision.PENDING
    assert [(record.kind, record.who) for record in bench.records] == [("consent.given", "uid:1000")]


def test_prompt_timeout_is_a_denial(bench: Bench) -> None:
    store = bench.store()
    store.ask(subject(), reason="r")
    bench.clock.advance(301)
    assert store.ask(subject(), reason="r") is Decision.DENIED
    assert store.denial_reason(A) == "timeout"
    assert bench.records[-1].kind == "consent.refused"


def test_denial_is_not_asked_again_for_a_day_unless_the_release_changes(bench: Bench) -> None:
    store = bench.store()
    store.ask(subject(A), reason="r")
    store.answer(store.prompts()[0].id, yes=False, who="uid:1000")
    bench.clock.advance(24 * 3600 - 1)
    assert store.ask(subject(A), reason="r") is Decision.DENIED
    assert store.ask(subject(B), reason="r") is Decision.PENDING
    bench.clock.advance(2)
    assert store.ask(subject(A), reason="r") is Decision.PENDING


def test_denial_survives_restart_and_reboot(bench: Bench) -> None:
    store = bench.store()
    store.ask(subject(), reason="r")
    store.answer(store.prompts()[0].id, yes=False, who="uid:1000")
    assert bench.store().ask(subject(), reason="r") is Decision.DENIED
    assert bench.store(boot_id=LATER_BOOT).ask(subject(), reason="r") is Decision.DENIED


def test_denial_is_kept_when_the_clock_was_set_back(bench: Bench) -> None:
    store = bench.store()
    store.ask(subject(), reason="r")
    store.answer(store.prompts()[0].id, yes=False, who="uid:1000")
    bench.clock.set_utc(bench.clock.now_utc() - timedelta(days=3650))
    assert bench.store(boot_id=LATER_BOOT).ask(subject(), reason="r") is Decision.DENIED


def test_grant_survives_a_restart_and_dies_with_a_reboot(bench: Bench) -> None:
    bench.store().grant(A, who="uid:1000")
    assert bench.store().grant_for(A) is not None
    assert bench.store(boot_id=LATER_BOOT).grant_for(A) is None


def test_grant_ends_on_time_although_the_wall_clock_was_set_back(bench: Bench) -> None:
    store = bench.store()
    store.grant(A, who="uid:1000", duration_s=600)
    bench.clock.set_utc(bench.clock.now_utc() - timedelta(days=3650))
    bench.clock.advance(601)
    assert store.grant_for(A) is None


def test_grant_is_never_longer_than_the_site_allows(bench: Bench) -> None:
    assert bench.store().grant(A, who="uid:1000", duration_s=10**9).duration_s == 14400


def test_revoked_grant_is_gone_at_once_and_recorded(bench: Bench) -> None:
    store = bench.store()
    grant = store.grant(A, who="uid:1000")
    store.revoke(grant.id, who="uid:1001")
    assert bench.store().grant_for(A) is None
    assert (bench.records[-1].kind, bench.records[-1].who) == ("consent.revoked", "uid:1001")


def test_answering_twice_is_an_error_that_names_the_prompt(bench: Bench) -> None:
    store = bench.store()
    store.ask(subject(), reason="r")
    prompt = store.prompts()[0]
    store.answer(prompt.id, yes=True, who="uid:1000")
    with pytest.raises(ConsentError) as caught:
        store.answer(prompt.id, yes=False, who="uid:1000")
    assert caught.value.code == "consent.not-pending"


def test_at_most_three_prompts_wait(bench: Bench) -> None:
    store = bench.store()
    for letter in "abc":
        store.ask(subject(letter * 64), reason="r")
    with pytest.raises(ConsentError) as caught:
        store.ask(subject("d" * 64), reason="r")
    assert caught.value.code == "consent.busy"


def test_consent_that_cannot_be_recorded_is_not_given(bench: Bench) -> None:
    def refuse(record: ConsentRecord) -> None:
        raise ConsentError("the audit log is full", code="audit.unavailable")

    store = ConsentStore(
        bench.file, clock=bench.clock, boot_id=BOOT, ask_timeout_s=300, grant_max_s=60, on_record=refuse
    )
    store.ask(subject(), reason="r")
    with pytest.raises(ConsentError):
        store.answer(store.prompts()[0].id, yes=True, who="uid:1000")
    assert store.grant_for(A) is None
    assert len(store.prompts()) == 1


@pytest.mark.parametrize(
    "content", ["{", '{"schema": 2}', '{"schema": 1, "grants": [{}]}', '{"schema": 1, "grants": 3}']
)
def test_unreadable_store_is_left_alone_and_nothing_is_guessed(bench: Bench, content: str) -> None:
    bench.file.write_text(content)
    with pytest.raises(StateError, match=r"consent.json"):
        bench.store()
    assert bench.file.read_text() == content


def test_withdrawn_question_can_be_asked_again(bench: Bench) -> None:
    store = bench.store()
    store.ask(subject(), reason="r")
    store.withdraw(A)
    assert store.prompts() == []
    assert store.ask(subject(), reason="r") is Decision.PENDING
