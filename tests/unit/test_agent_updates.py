"""One DDI action carried through the updater, over the real interface on a real socket."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_agent import cli_show as show
from tidewaiter_agent.action import Action, ActionBook
from tidewaiter_agent.consent import ConsentStore
from tidewaiter_agent.outbox import Outbox, SystemOutboxDisk
from tidewaiter_agent.outbox_item import ItemClass
from tidewaiter_agent.updater_client import VarlinkUpdater
from tidewaiter_agent.updates import Finding, Updates
from tidewaiter_core.settings import UpdateConsent

from tests.sim.clock import FakeClock
from tests.sim.updater import DIGEST, RELEASE, Offered, UpdaterWorld, busy, refused

FEEDBACK = ItemClass.FEEDBACK


class Bench:
    """An agent's update part; `restart` builds it anew from what is on storage."""

    def __init__(self, directory: Path, world: UpdaterWorld) -> None:
        self.directory = directory
        self.world = world
        self.clock = FakeClock()
        self.policy = UpdateConsent.SERVER
        self.restart()

    def restart(self, *, boot_id: str = "1" * 32, disk: SystemOutboxDisk | None = None) -> None:
        self.outbox = Outbox(self.directory / "outbox", on_finding=lambda code, text: None, disk=disk)
        self.consent = ConsentStore(
            self.directory / "consent.json",
            clock=self.clock,
            boot_id=boot_id,
            ask_timeout_s=300,
            grant_max_s=14400,
            on_record=lambda record: None,
        )
        self.updates = Updates(
            book=ActionBook(self.directory / "action.json"),
            updater=VarlinkUpdater(self.world.path),
            outbox=self.outbox,
            consent=self.consent,
            clock=self.clock,
            stamp=dict,
            policy=self.policy,
            rng=random.Random(1),
        )

    def offer(self, action_id: str = "7", **changes: Any) -> None:
        self.updates.found(
            Finding(offered=Action(id=action_id, release_path=RELEASE, name="", version="", **changes))
        )

    def run(self, steps: int = 8) -> None:
        for _ in range(steps):
            self.clock.advance(min(self.updates.step(), 30.0))

    def messages(self, rel: str = "deploymentBase") -> list[dict[str, Any]]:
        return [dict(item.body) for _, item in self.outbox.head(FEEDBACK, 1000) if item.rel == rel]

    def story(self, rel: str = "deploymentBase") -> list[str]:
        return [f"{m['status']['execution']}/{m['status']['result']['finished']}" for m in self.messages(rel)]

    def deliver(self) -> None:
        for seq, _ in self.outbox.head(FEEDBACK, 1000):
            self.outbox.done(FEEDBACK, seq)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    # A socket path is short; pytest's folders are not.
    with tempfile.TemporaryDirectory() as short, UpdaterWorld(Path(short) / "u.sock") as world:
        yield Bench(tmp_path, world)


def test_update_that_commits_is_told_from_offer_to_success(bench: Bench) -> None:
    bench.offer()
    bench.run()
    bench.world.phase = "VERIFY"
    bench.run(2)
    bench.world.phase = "STAGED"
    bench.run(2)
    assert bench.world.called("Activate") == [{"digest": DIGEST, "window_open": True}]
    bench.world.phase = "ARMED"
    bench.run(2)
    bench.restart(boot_id="2" * 32)
    bench.world.phase = "TRIAL"
    bench.run(2)
    bench.world.commit()
    bench.run(2)
    story = bench.story()
    assert story[0] == "proceeding/none"
    assert [
        word for word in story if word.startswith(("download/", "downloaded/", "resumed/", "closed/"))
    ] == [
        "download/none",
        "download/none",
        "downloaded/none",
        "resumed/none",
        "closed/success",
    ]
    assert bench.updates.action is None


def test_refusal_closes_the_action_with_failure_and_its_code(bench: Bench) -> None:
    bench.world.releases[RELEASE].code = "release.hw"
    bench.offer()
    bench.run()
    assert bench.story() == ["closed/failure"]
    assert bench.messages()[0]["status"]["details"][0] == "release.hw"
    assert bench.world.called("Install") == []


def test_final_refusal_of_the_updater_closes_the_action(bench: Bench) -> None:
    bench.world.raises["Check"] = refused("trust.threshold", "signatures 1 of 2")
    bench.offer()
    bench.run()
    assert bench.messages()[0]["status"]["details"] == ["trust.threshold", "signatures 1 of 2"]


def test_retryable_refusal_is_told_once_and_tried_again(bench: Bench) -> None:
    bench.world.raises["Check"] = refused("source.unavailable", "no network", retryable=True)
    bench.offer()
    bench.run(6)
    assert bench.story() == ["scheduled/none"]
    assert len(bench.world.called("Check")) >= 3
    bench.world.raises.clear()
    bench.run(20)
    assert bench.world.phase == "TRANSFER"


def test_failure_in_transfer_closes_with_the_stable_code(bench: Bench) -> None:
    bench.offer()
    bench.run()
    bench.world.end("FAILED", "source.bad-bytes", "chunk 17 differs")
    bench.run(2)
    assert bench.messages()[-1]["status"]["details"][:2] == ["source.bad-bytes", "chunk 17 differs"]
    assert bench.story()[-1] == "closed/failure"


def test_rollback_found_after_a_reboot_closes_with_the_reason(bench: Bench) -> None:
    bench.offer()
    bench.run()
    bench.world.end("ROLLED_BACK", "health.units", "unit x failed")
    bench.world.forget()
    bench.restart(boot_id="2" * 32)
    bench.run(3)
    assert bench.messages()[-1]["status"]["details"][0] == "health.units"


def test_new_action_for_a_release_that_failed_before_is_not_closed_by_the_old_failure(bench: Bench) -> None:
    bench.offer("7")
    bench.run()
    bench.world.end("FAILED", "slot.io")
    bench.run(3)
    bench.offer("8")
    bench.run()
    assert bench.world.phase == "TRANSFER"
    assert [item.id for _, item in bench.outbox.head(FEEDBACK, 100) if item.final] == ["7-closed"]


def test_release_that_runs_already_is_a_success_without_an_installation(bench: Bench) -> None:
    bench.world.running = ("2.1.0", DIGEST)
    bench.offer()
    bench.run()
    assert bench.story()[-1] == "closed/success"
    assert bench.world.called("Install") == []


def test_closed_action_is_not_begun_again_while_the_server_still_shows_it(bench: Bench) -> None:
    bench.world.releases[RELEASE].code = "release.hw"
    bench.offer()
    bench.run()
    bench.deliver()
    bench.restart()
    bench.offer()
    bench.run()
    assert bench.story() == []
    assert len(bench.world.called("Check")) == 1


def test_window_that_is_shut_downloads_but_does_not_allow_the_reboot(bench: Bench) -> None:
    bench.offer(window_open=False)
    bench.run()
    bench.world.phase = "STAGED"
    bench.run(3)
    assert bench.world.called("Activate") == [{"digest": DIGEST, "window_open": False}]
    assert bench.messages()[-1]["status"]["details"] == ["waiting for update.window"]
    bench.offer(window_open=True)
    bench.run(3)
    assert bench.world.called("Activate")[-1] == {"digest": DIGEST, "window_open": True}
    assert len(bench.world.called("Activate")) == 2


def test_update_skip_stages_and_waits(bench: Bench) -> None:
    bench.offer(update=False)
    bench.run()
    bench.world.phase = "STAGED"
    bench.run(5)
    assert bench.world.called("Activate") == []


def test_download_skip_asks_nothing_of_the_updater(bench: Bench) -> None:
    bench.offer(download=False)
    bench.run()
    assert bench.world.calls == []


def test_interlock_that_waits_is_told_once_with_its_reason(bench: Bench) -> None:
    bench.offer()
    bench.run()
    bench.world.phase = "STAGED"
    bench.run(2)
    bench.world.waiting_for = ["update.interlock:injecting"]
    bench.run(10)
    told = [m for m in bench.messages() if "waiting for update.interlock:injecting" in m["status"]["details"]]
    assert len(told) == 1
    assert told[0]["status"]["execution"] == "scheduled"


def test_progress_is_coalesced_to_the_latest(bench: Bench) -> None:
    bench.offer()
    bench.run()
    for percent in range(0, 101, 1):
        bench.world.done_bytes = bench.world.total_bytes * percent // 100
        bench.updates.step()
    progress = [
        m["status"]["result"]["progress"] for m in bench.messages() if "progress" in m["status"]["result"]
    ]
    assert progress == [{"cnt": 100, "of": 100}]


def test_feedback_says_what_the_command_line_says(bench: Bench) -> None:
    bench.offer()
    bench.run()
    bench.world.done_bytes = bench.world.total_bytes // 2
    bench.run()
    told = bench.messages()[-1]["status"]
    assert (told["execution"], told["result"]["progress"]) == ("download", {"cnt": 50, "of": 100})
    numbers, origin = told["details"]
    shown = show.update_text(bench.world.status())
    assert "32.0 of 64.0 MiB in place" in numbers and "16.0 of 32.0 MiB fetched over the network" in numbers
    assert "5.0 MiB/s" in numbers and "10 s left" in numbers
    assert origin == "MiB by origin: pack 32.0"
    for same in ("32.0", "64.0 MiB", "16.0 of 32.0 MiB over the network", "5.0 MiB/s", "pack 32.0"):
        assert same in shown
    bench.world.end("FAILED", "slot.io", "slot B: write at byte 4096 failed: Input/output error")
    bench.run(2)
    assert bench.messages()[-1]["status"]["details"] == [
        "slot.io",
        "slot B: write at byte 4096 failed: Input/output error",
        "what to do: call",
    ]
    ended = show.update_text(bench.world.status())
    assert "slot.io: slot B: write at byte 4096 failed" in ended and "call" in ended


def test_site_consent_is_asked_and_relayed_as_a_claim(bench: Bench) -> None:
    bench.world.releases[RELEASE].consent = "site"
    bench.offer()
    bench.run()
    assert bench.world.phase == "WAIT_CONSENT"
    assert bench.story()[-1] == "scheduled/none"
    bench.consent.answer(bench.consent.prompts()[0].id, yes=True, who="uid:1000")
    bench.run()
    assert bench.world.phase == "TRANSFER"
    claim = bench.world.called("Install")[-1]["consent"]
    assert (claim["channel"], claim["who"], claim["scope"]) == ("site", "uid:1000", ["install", "activate"])


def test_local_consent_is_never_claimed_by_the_agent(bench: Bench) -> None:
    bench.world.releases[RELEASE].consent = "local"
    bench.offer()
    bench.run()
    prompt = bench.consent.prompts()[0]
    assert prompt.subject.needs_local
    bench.consent.answer(prompt.id, yes=True, who="uid:1000")
    bench.run()
    assert bench.world.phase == "WAIT_CONSENT"
    assert all(parameters["consent"] is None for parameters in bench.world.called("Install"))


def test_site_that_always_asks_prompts_even_if_the_release_does_not(bench: Bench) -> None:
    bench.policy = UpdateConsent.ASK
    bench.restart()
    bench.world.releases[RELEASE].consent = "local"  # how the updater itself treats the policy
    bench.offer()
    bench.run()
    assert bench.consent.prompts()[0].subject.needs_local


def test_site_that_forbids_updates_closes_with_the_policy(bench: Bench) -> None:
    bench.policy = UpdateConsent.DENY
    bench.restart()
    bench.offer()
    bench.run()
    assert bench.messages()[-1]["status"]["details"][0] == "consent.denied"
    assert bench.world.called("Install") == []


def test_prompt_without_an_answer_cancels_and_closes_as_timed_out(bench: Bench) -> None:
    bench.world.releases[RELEASE].consent = "site"
    bench.offer()
    bench.run()
    bench.clock.advance(301)
    bench.run()
    assert bench.messages()[-1]["status"]["details"][0] == "consent.timeout"
    assert bench.world.called("Cancel") == [{"digest": DIGEST}]


def test_consent_given_straight_to_the_updater_withdraws_the_prompt(bench: Bench) -> None:
    bench.world.releases[RELEASE].consent = "local"
    bench.offer()
    bench.run()
    bench.world.phase, bench.world.waiting_for = "TRANSFER", []
    bench.run(2)
    assert bench.consent.prompts() == []


def test_cancel_is_acknowledged_with_closed_success(bench: Bench) -> None:
    bench.offer()
    bench.run()
    bench.updates.found(Finding(cancel_id="7", stop_id="7"))
    bench.run(4)
    assert bench.story("cancelAction") == ["closed/success"]
    assert bench.world.called("Cancel") == [{"digest": DIGEST}]
    assert bench.updates.action is None
    assert "closed/failure" not in bench.story()


def test_cancel_before_the_installation_needs_no_updater(bench: Bench) -> None:
    bench.offer(download=False)
    bench.run()
    bench.updates.found(Finding(cancel_id="7", stop_id="7"))
    bench.run()
    assert bench.story("cancelAction") == ["closed/success"]
    assert bench.world.called("Cancel") == []


def test_cancel_that_comes_too_late_is_rejected_and_the_update_goes_on(bench: Bench) -> None:
    bench.offer()
    bench.run()
    bench.world.phase = "TRIAL"
    for _ in range(3):
        bench.updates.found(Finding(cancel_id="7", stop_id="7"))
        bench.run(2)
    assert bench.story("cancelAction") == ["rejected/none"]
    bench.world.commit()
    bench.run(2)
    assert bench.story()[-1] == "closed/success"


def test_second_cancel_after_a_rejected_one_is_answered_again(bench: Bench) -> None:
    bench.offer()
    bench.run()
    bench.world.phase = "ARMED"
    bench.updates.found(Finding(cancel_id="7", stop_id="7"))
    bench.run(2)
    bench.world.phase = "WAIT_WINDOW"
    bench.offer()
    bench.run(2)
    bench.updates.found(Finding(cancel_id="7", stop_id="7"))
    bench.run(4)
    assert bench.story("cancelAction") == ["rejected/none", "closed/success"]


def test_cancel_of_an_action_we_never_saw_is_acknowledged_once(bench: Bench) -> None:
    for _ in range(3):
        bench.updates.found(Finding(cancel_id="99", stop_id="99"))
        bench.run(2)
    assert bench.story("cancelAction") == ["closed/success"]


def test_cancel_of_another_action_leaves_the_present_one_alone(bench: Bench) -> None:
    bench.offer()
    bench.run()
    bench.world.phase = "TRIAL"
    bench.updates.found(Finding(cancel_id="99", stop_id="99"))
    bench.run(2)
    assert bench.story("cancelAction") == ["closed/success"]
    bench.world.commit()
    bench.run(2)
    assert bench.story()[-1] == "closed/success"
    assert bench.updates.action is None


def test_a_stick_that_was_taken_away_leaves_the_release_to_the_network(bench: Bench) -> None:
    bench.offer()
    bench.run()
    bench.world.phase, bench.world.source = "TRANSFER", "directory:/media/stick"
    bench.world.waiting_for = []
    bench.run(2)
    assert len(bench.world.called("Install")) == 1
    bench.world.waiting_for = ["source.vanished"]
    bench.run(1)
    again = bench.world.called("Install")[1:]
    assert [(call["digest"], call["source"], call["medium"]) for call in again] == [(DIGEST, None, None)]


def test_a_download_that_the_server_withdrew_is_not_taken_over(bench: Bench) -> None:
    bench.offer()
    bench.run()
    bench.offer(download=False)
    bench.world.phase, bench.world.waiting_for = "TRANSFER", ["source.vanished"]
    bench.run(2)
    assert len(bench.world.called("Install")) == 1


def test_confirmation_is_answered_and_the_deployment_follows(bench: Bench) -> None:
    bench.offer(confirming=True)
    bench.run()
    assert bench.world.called("Install") == []
    bench.consent.answer(bench.consent.prompts()[0].id, yes=True, who="uid:1000")
    bench.run()
    assert [m["confirmation"] for m in bench.messages("confirmationBase")] == ["confirmed"]
    bench.offer()
    bench.run()
    assert bench.world.phase == "TRANSFER"


def test_denied_confirmation_is_answered_once_and_not_asked_again_for_a_day(bench: Bench) -> None:
    bench.offer(confirming=True)
    bench.run()
    bench.consent.answer(bench.consent.prompts()[0].id, yes=False, who="uid:1000")
    for _ in range(5):
        bench.offer(confirming=True)
        bench.run(2)
    assert [m["confirmation"] for m in bench.messages("confirmationBase")] == ["denied"]
    bench.clock.advance(24 * 3600)
    bench.run(2)
    assert len(bench.consent.prompts()) == 1


def test_updater_that_does_not_answer_is_waited_for(bench: Bench) -> None:
    path = bench.world.path
    bench.world.path = path.with_name("nobody.sock")
    bench.restart()
    bench.offer()
    bench.run(5)
    assert bench.updates.action is not None
    assert bench.story() == []
    bench.world.path = path
    bench.restart()
    bench.run(5)
    assert bench.world.phase == "TRANSFER"


def test_busy_updater_is_waited_for_and_told(bench: Bench) -> None:
    bench.world.raises["Check"] = busy("TRANSFER")
    bench.offer()
    bench.run(3)
    assert bench.messages()[-1]["status"]["details"][0] == "update.busy"
    bench.world.raises.clear()
    bench.run()
    assert bench.world.phase == "TRANSFER"


def test_action_the_server_takes_away_before_it_began_is_dropped_quietly(bench: Bench) -> None:
    bench.world.raises["Check"] = refused("source.unavailable", retryable=True)
    bench.offer()
    bench.run(2)
    bench.updates.found(Finding())
    bench.run(2)
    assert bench.updates.action is None
    assert all(not item.final for _, item in bench.outbox.head(FEEDBACK, 100))


def test_replaced_action_stops_the_old_installation(bench: Bench) -> None:
    bench.offer("7")
    bench.run()
    other = "releases/contrast-injector/2.2.0/release.json"
    bench.world.releases[other] = Offered(digest="e" * 64, version="2.2.0")
    bench.updates.found(Finding(offered=Action(id="8", release_path=other, name="", version="")))
    bench.run()
    assert bench.world.called("Cancel") == [{"digest": DIGEST}]
    assert bench.world.digest == "e" * 64


def test_window_is_told_anew_for_a_new_action(bench: Bench) -> None:
    bench.offer("7", window_open=False)
    bench.run()
    bench.world.phase = "STAGED"
    bench.run(2)
    assert bench.world.called("Activate")
    bench.world.end("FAILED", "update.boot")
    bench.run(2)
    assert bench.updates.action is None
    told, installs = len(bench.world.called("Activate")), len(bench.world.called("Install"))
    bench.offer("8", window_open=False)
    while len(bench.world.called("Install")) == installs:
        bench.updates.step()
    bench.world.phase = "WAIT_WINDOW"
    bench.run(3)
    assert len(bench.world.called("Activate")) == told + 1


def test_updater_that_forgets_each_installation_is_asked_less_and_less_often(bench: Bench) -> None:
    bench.offer()
    began_s = bench.clock.boottime_s()
    for _ in range(90):
        bench.clock.advance(bench.updates.step())
        bench.world.forget()
    assert len(bench.world.called("Check")) <= 2 + (bench.clock.boottime_s() - began_s) / 30


def test_release_that_the_updater_does_not_know_is_checked_less_and_less_often(bench: Bench) -> None:
    bench.offer()
    bench.world.raises["Install"] = refused("release.unknown")
    began_s = bench.clock.boottime_s()
    for _ in range(20):
        bench.clock.advance(bench.updates.step())
    assert bench.clock.boottime_s() - began_s > 600


def test_updater_that_is_away_for_days_is_one_line_in_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.offer()
    bench.world.__exit__(None, None, None)
    bench.run(20)
    assert len([record for record in caplog.records if record.getMessage().startswith("updater:")]) == 1


class FullDisk(SystemOutboxDisk):
    full = True

    def write(self, fd: int, data: bytes) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(fd, data)


def test_full_disk_delays_the_final_feedback_and_loses_nothing(bench: Bench) -> None:
    disk = FullDisk()
    bench.restart(disk=disk)
    bench.world.releases[RELEASE].code = "release.hw"
    bench.offer()
    bench.run(5)
    assert bench.updates.action is not None
    assert bench.story() == []
    disk.full = False
    bench.run(3)
    assert bench.story() == ["closed/failure"]


def test_failed_report_never_rolls_back(bench: Bench) -> None:
    """In a trial nothing can be told for a while: the agent waits, and asks the updater for nothing."""
    bench.offer()
    bench.run()
    bench.world.phase = "STAGED"
    bench.run(2)
    disk = FullDisk()
    bench.restart(boot_id="2" * 32, disk=disk)
    bench.world.phase = "TRIAL"
    bench.run(20)
    bench.world.commit()
    bench.run(20)
    assert bench.world.called("Cancel") == bench.world.called("Reject") == []
    assert bench.story()[-1] != "closed/success", "not told yet"
    disk.full = False
    bench.run(3)
    assert bench.story()[-1] == "closed/success"
    assert bench.world.called("Cancel") == []


@pytest.mark.parametrize("point", range(1, 12))
def test_restart_at_any_step_goes_on_with_the_same_action_and_closes_it_once(
    bench: Bench, point: int
) -> None:
    bench.offer()
    for number in range(1, 20):
        bench.updates.step()
        if number == 4:
            bench.world.phase = "STAGED"
        if number == 7:
            bench.world.commit()
        if number == point:
            bench.restart()
            bench.offer()
    finals = [item.id for _, item in bench.outbox.head(FEEDBACK, 100) if item.final]
    assert finals == ["7-closed"]
    assert bench.story()[-1] == "closed/success"
