"""The boot environment's decisions: each one is a single new record, and no decision is spread over two (invariant I4).

Pure. update-engine.md section 8 names them; only the engine hands their results to a `BootControl`.
"""

from __future__ import annotations

from dataclasses import replace

from tidewaiter_core.model import SlotName

from tidewaiter_updater.model import NO_TXN, TXN_CHARS, BootEnv

MAX_TRIES = 9
MAX_REFUNDS = 5


def with_ok(env: BootEnv, slot: SlotName, ok: bool) -> BootEnv:
    """`env` with the fallback permission of `slot` set to `ok`."""
    return replace(env, ok_a=ok) if slot is SlotName.A else replace(env, ok_b=ok)


def disarm(env: BootEnv, target: SlotName) -> BootEnv:
    """DISARM: `target` cannot be booted from here on; precedes its first changed byte (invariant I2)."""
    _not_committed(env, target)
    return with_ok(replace(env, trial=None, left=0), target, False)


def arm(env: BootEnv, target: SlotName, *, tries: int, txn: str, boot_id: str) -> BootEnv:
    """ARM: the next boots try `target`, at most `tries` times."""
    _not_committed(env, target)
    if not 1 <= tries <= MAX_TRIES:
        raise ValueError(f"tries = {tries} is outside 1..{MAX_TRIES}; the boot script counts in one digit")
    if len(txn) != TXN_CHARS or txn == NO_TXN:
        raise ValueError(f"txn = {txn!r} does not name a transaction; nothing is armed")
    armed = replace(env, trial=target, left=tries, refunds=0, txn=txn, armboot=boot_id[:8])
    return with_ok(armed, target, True)


def refund(env: BootEnv) -> BootEnv:
    """REFUND: a person switched the device off in a trial; that boot does not count, up to five times."""
    if env.trial is None or env.left >= MAX_TRIES or env.refunds >= MAX_REFUNDS:
        return env
    return replace(env, left=env.left + 1, refunds=env.refunds + 1)


def fail(env: BootEnv) -> BootEnv:
    """FAIL: health said no; the next reset goes back at once."""
    return replace(env, left=0)


def commit(env: BootEnv, booted: SlotName) -> BootEnv:
    """COMMIT: `booted` is the slot that boots from now on, whatever the counters say."""
    return replace(env, committed=booted, trial=None, left=0)


def raise_epoch(env: BootEnv, epoch: int, *, close_other: bool) -> BootEnv:
    """RAISE: no slot below `epoch` stays bootable; `close_other` says that the fallback is one of those."""
    raised = replace(env, epoch=max(env.epoch, epoch))
    return with_ok(raised, env.committed.other, False) if close_other else raised


def clear(env: BootEnv) -> BootEnv:
    """CLEAR: the trial is over, or was called off before the reboot."""
    if env.trial is None:
        return env
    cleared = replace(env, trial=None, left=0)
    return cleared if env.trial is env.committed else with_ok(cleared, env.trial, False)


def repair(booted: SlotName, *, epoch: int) -> BootEnv:
    """REPAIR: a fresh record for a device whose two copies were lost. Only the slot that runs is trusted."""
    fresh = BootEnv(committed=booted, ok_a=False, ok_b=False, epoch=epoch)
    return with_ok(fresh, booted, True)


def _not_committed(env: BootEnv, target: SlotName) -> None:
    if target is env.committed:
        raise ValueError(f"slot {target} is the committed slot; it is never disarmed and never a trial")
