"""classify: the environment decides, the journal is a hint."""

import itertools
from dataclasses import replace

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_updater.model import BootEnv
from tidewaiter_updater.phases import EFFECTS, IN_TRIAL, RESTING, Effect, Hint, Phase, Start, classify

A, B = SlotName.A, SlotName.B
BOOT = "bbbbbbbb" * 4
OTHER_BOOT = "aaaaaaaa"
TXN = "0123456789abcdef"
IDLE_ENV = BootEnv(committed=A, ok_a=True, ok_b=False, txn=TXN, armboot=OTHER_BOOT)
TRIAL_ENV = replace(IDLE_ENV, trial=B, left=2, ok_b=True)


def hint(phase: Phase, *, target: SlotName = B, closed: bool = False, quarantined: bool = False) -> Hint:
    return Hint(phase=phase, txn=TXN, target=target, closed=closed, quarantined=quarantined)


def start(
    env: BootEnv | None, booted: SlotName | None, known: Hint | None = None, *, finished: bool = True
) -> Start:
    return classify(env, booted, BOOT, hint=known, finished=finished)


def test_no_valid_environment_copy_is_degraded() -> None:
    assert start(None, A) == Start(phase=Phase.IDLE, degraded="boot.env-invalid")


def test_an_unknown_booted_slot_is_degraded_before_anything_else() -> None:
    assert start(None, None).degraded == "boot.slot-mismatch"


def test_a_booted_slot_that_is_neither_committed_nor_on_trial_is_degraded() -> None:
    assert start(IDLE_ENV, B).degraded == "boot.slot-mismatch"


def test_the_trial_slot_booted_in_another_boot_is_a_trial() -> None:
    assert start(TRIAL_ENV, B) == Start(phase=Phase.TRIAL)


def test_the_last_try_is_still_a_trial() -> None:
    assert start(replace(TRIAL_ENV, left=0), B) == Start(phase=Phase.TRIAL)


def test_a_trial_slot_that_runs_in_the_boot_that_armed_it_is_degraded() -> None:
    assert start(replace(TRIAL_ENV, armboot=BOOT[:8]), B).degraded == "boot.slot-mismatch"


def test_a_trial_armed_in_this_boot_is_armed() -> None:
    assert start(replace(TRIAL_ENV, armboot=BOOT[:8]), A) == Start(phase=Phase.ARMED)


def test_a_spent_trial_seen_from_the_old_slot_is_a_rollback_to_be_finished() -> None:
    assert start(replace(TRIAL_ENV, left=0), A) == Start(phase=Phase.ROLLED_BACK, pending=True)


def test_a_trial_that_never_ran_is_cleared_and_staged_again_without_quarantine() -> None:
    assert start(TRIAL_ENV, A) == Start(phase=Phase.VERIFY, stale_trial=True)


def test_a_commit_whose_rest_was_cut_off_is_finished() -> None:
    committed = replace(IDLE_ENV, committed=B, ok_b=True)
    assert start(committed, B, hint(Phase.HEALTH)) == Start(phase=Phase.COMMITTED, pending=True)


def test_floors_below_the_running_release_are_raised() -> None:
    assert start(IDLE_ENV, A, finished=False) == Start(phase=Phase.COMMITTED, pending=True)


def test_a_rollback_that_was_cut_off_after_clear_is_finished() -> None:
    assert start(IDLE_ENV, A, hint(Phase.TRIAL, quarantined=True)) == Start(
        phase=Phase.ROLLED_BACK, pending=True
    )


def test_a_cleared_trial_that_was_not_judged_is_proven_again() -> None:
    assert start(IDLE_ENV, A, hint(Phase.ARMED)) == Start(phase=Phase.VERIFY)


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.TRANSFER])
def test_an_interrupted_transfer_is_resumed(phase: Phase) -> None:
    assert start(IDLE_ENV, A, hint(phase)) == Start(phase=Phase.TRANSFER)


@pytest.mark.parametrize("phase", [Phase.VERIFY, Phase.STAGED, Phase.WAIT_WINDOW])
def test_staged_content_is_believed_only_after_reading_it(phase: Phase) -> None:
    assert start(IDLE_ENV, A, hint(phase)) == Start(phase=Phase.VERIFY)


def test_a_target_that_may_boot_is_disarmed_before_a_transfer_goes_on() -> None:
    assert start(replace(IDLE_ENV, ok_b=True), A, hint(Phase.TRANSFER)) == Start(phase=Phase.WAIT_CONSENT)


def test_a_failure_that_was_not_audited_yet_is_finished() -> None:
    assert start(IDLE_ENV, A, hint(Phase.FAILED)) == Start(phase=Phase.FAILED, pending=True)


@pytest.mark.parametrize("phase", [Phase.COMMITTED, Phase.ROLLED_BACK, Phase.FAILED])
def test_a_closed_transaction_is_shown_until_the_next(phase: Phase) -> None:
    assert start(IDLE_ENV, A, hint(phase, closed=True)) == Start(phase=phase)


def test_a_lost_journal_means_idle() -> None:
    assert start(IDLE_ENV, A) == Start(phase=Phase.IDLE)


def test_a_journal_about_the_booted_slot_is_not_believed() -> None:
    assert start(replace(IDLE_ENV, txn="f" * 16), A, hint(Phase.STAGED, target=A)) == Start(phase=Phase.IDLE)


def test_no_combination_lets_the_journal_commit_or_start_a_trial() -> None:
    """I3: for one environment and slot, every possible journal gives a phase that decides nothing new."""
    envs = [
        replace(IDLE_ENV, committed=committed, trial=trial, left=left, armboot=armboot)
        for committed, trial, left, armboot in itertools.product(
            SlotName, (None, A, B), (0, 2), (OTHER_BOOT, BOOT[:8])
        )
    ]
    hints = [None] + [
        hint(phase, target=target, closed=closed, quarantined=quarantined)
        for phase, target, closed, quarantined in itertools.product(
            Phase, SlotName, (False, True), (False, True)
        )
    ]
    for env, booted, known in itertools.product(envs, SlotName, hints):
        found, bare = start(env, booted, known), start(env, booted)
        assert found.degraded == bare.degraded
        assert (found.phase in IN_TRIAL) == (bare.phase in IN_TRIAL)
        assert (found.phase is Phase.ARMED) == (bare.phase is Phase.ARMED)
        if found.phase is Phase.COMMITTED and found.pending:
            assert booted is env.committed, "only what the environment committed is finished"


def test_each_decision_stands_once_in_its_phase() -> None:
    order = {phase: list(effects) for phase, effects in EFFECTS.items()}
    assert order[Phase.PREPARE].index(Effect.AUDIT_INSTALLING) < order[Phase.PREPARE].index(Effect.DISARM)
    assert order[Phase.ARMED].index(Effect.ARM) < order[Phase.ARMED].index(Effect.JOURNAL)
    assert order[Phase.COMMITTED][0] is Effect.COMMIT
    assert order[Phase.ROLLED_BACK].index(Effect.QUARANTINE) < order[Phase.ROLLED_BACK].index(Effect.CLEAR)
    for phase in RESTING - {Phase.IDLE}:
        assert order[phase][-1] is Effect.CLOSE
