"""systemd-boot: one unified kernel image (UKI) per slot on the EFI system partition, whose name says whether it boots.

systemd-boot reads names and nothing else. A record in two copies beside them holds what a name cannot (transaction, epoch,
refunds, permission to fall back). Every decision has one step that puts it in force; the steps before it change nothing that
decides, the steps after it are made up for by the next write:

| decision | before | in force by | after |
|---|---|---|---|
| ARM | staged image hashed | the record; the rename to `+<tries>` follows at once | |
| COMMIT | a copy of the image, hashed | the rename of the copy to a name without counter | record, counted name removed |
| FAIL, REFUND | | the record | counter in the name |
| DISARM, CLEAR, RAISE, REPAIR | names removed that must not boot; a trial that never ran is staged again | the record | |

`read` puts both together. A trial in the record whose entry has no counter any more is committed. A trial whose entry counts has
the tries of the record, less what was counted since. A trial without an entry was lost in a rename: the record stands, the old
slot boots, the engine sees a trial that never ran and stages it again. So each of the four outcomes of a rename that was cut
(old, new, both, neither) is a state before or after a decision. Deviation from the design: COMMIT renames a copy, not the
counted entry, so that "neither" cannot lose a release that was about to be committed.

systemd-boot takes the newest version first, so a trial that is not newer than the committed release would never run: refused.
Source: update-engine.md section 8.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tidewaiter_core.model import SlotName

from tidewaiter_updater import decision
from tidewaiter_updater.boot import BootEnvError, SlotMismatchError
from tidewaiter_updater.boot.copies import CopyStore, TwoCopies
from tidewaiter_updater.boot.envcopy import from_variables, to_variables
from tidewaiter_updater.boot.esp import ENTRIES, PRIVATE, Esp
from tidewaiter_updater.boot.grubenv import LAYOUT
from tidewaiter_updater.boot.staged import StagedUki, find_staged
from tidewaiter_updater.boot.ukiname import UkiName, is_before
from tidewaiter_updater.model import BootEnv

logger = logging.getLogger(__name__)

_COUNTED: Final = "tw_done"
"""Variable of the record: what the trial's entry had counted when the record was written; three digits."""
_ASIDE: Final = "aside-"
_COPY: Final = "copy-"


class SdBoot:
    """BootControl over entry names and a record."""

    def __init__(self, esp: Esp, store: CopyStore, *, booted: Callable[[], SlotName]) -> None:
        self._esp = esp
        self._copies = TwoCopies(store, LAYOUT)
        self._booted = booted

    def booted(self) -> SlotName:
        return self._booted()

    def read(self) -> BootEnv | None:
        copy = self._copies.read()
        record = from_variables(copy.variables) if copy else None
        if copy is None or record is None or record.trial is None:
            return record
        entries = self._entries(record.trial)
        if any(entry.is_good() for entry in entries):
            return decision.commit(record, record.trial)
        since = _counted(entries) - _number(copy.variables.get(_COUNTED))
        return replace(record, left=max(0, record.left - max(0, since)))

    def write(self, env: BootEnv) -> None:
        before = self.read()
        staged = self._proven(env) if self._needs_entry(env, before) else None
        if before is not None:
            # The record takes over what the names say, so that it stands for itself once they change.
            self._record(before)
        if before is not None and env.trial is None and before.trial is not env.committed:
            self._unstage(before)
        for slot in SlotName:
            if slot not in (env.committed, env.trial) and not env.is_ok(slot):
                self._remove(self._entries(slot))
        if staged is not None:
            self._remove(self._entries(staged.slot))
            self._record(env)
            entry = UkiName(version=staged.version, slot=staged.slot, left=env.left)
            self._esp.rename(staged.path, f"{ENTRIES}/{entry}")
        self._make_good(env.committed)
        self._record(env)
        self._tidy(env)
        if self.read() != env or not self._is_projected(env):
            raise BootEnvError(
                f"{self._esp.name}: entries and record do not read back as written; "
                "the earlier record may still decide"
            )

    def settle(self) -> None:
        """Bring names in line with the decision in force, if a cut parted them; to be called once when the updater starts.

        Of several counted names of the trial only the one with the fewest tries stays: systemd-boot takes the one with
        the most, and cannot count it down onto a name that exists. A medium that refuses is left as it is: what is in
        force is still in force.
        """
        try:
            env = self.read()
            if env is None or self._booted() not in (env.committed, env.trial):
                return  # degraded: nothing is written
            if env.trial is not None and env.trial is not env.committed:
                self._remove(sorted(self._entries(env.trial), key=lambda entry: entry.left or 0)[1:])
            self._tidy(env)
        except (BootEnvError, SlotMismatchError) as err:
            logger.warning("names of kernel images stay as a cut left them: %s", err)

    # --- the record -----------------------------------------------------------------------------------------------

    def _record(self, env: BootEnv) -> None:
        """Write the record unless it says this already."""
        entries = self._entries(env.trial) if env.trial is not None else []
        variables = {**to_variables(env), _COUNTED: f"{_counted(entries):03d}"}
        current = self._copies.read()
        if current is None or any(current.variables.get(name) != value for name, value in variables.items()):
            self._copies.write(variables)

    # --- entries --------------------------------------------------------------------------------------------------

    def _entries(self, slot: SlotName) -> list[UkiName]:
        found = (UkiName.parse(name) for name in sorted(self._esp.files(ENTRIES)))
        return [entry for entry in found if entry is not None and entry.slot is slot]

    def _needs_entry(self, env: BootEnv, before: BootEnv | None) -> bool:
        """Whether `env` begins a trial, or goes on with one whose entry is lost."""
        if env.trial is None or env.trial is env.committed or env.left == 0:
            return False
        same = before is not None and (before.trial, before.txn) == (env.trial, env.txn)
        return not (same and self._entries(env.trial))

    def _proven(self, env: BootEnv) -> StagedUki:
        """The staged image of the trial, hashed and sure to be taken before the committed one."""
        staged = find_staged(self._esp, slot=env.trial or env.committed.other, txn=env.txn)
        if staged is None:
            raise BootEnvError(
                f"{self._esp.name}: no staged kernel image of {env.txn} for slot {env.trial}; not armed"
            )
        if (found := self._esp.digest(staged.path)) != staged.sha256:
            raise BootEnvError(
                f"{staged.path}: expected SHA-256 {staged.sha256}, the medium gives {found}; not armed"
            )
        trial = UkiName(version=staged.version, slot=staged.slot, left=env.left)
        for rival in self._entries(env.committed):
            if not is_before(trial, rival):
                raise BootEnvError(
                    f"{rival} is not older than {trial}, systemd-boot would never try that; not armed"
                )
        return staged

    def _unstage(self, before: BootEnv) -> None:
        """Make the entry of a trial that was called off before it ran a staged image again, which need not be fetched anew."""
        if before.trial is None or len(entries := self._entries(before.trial)) != 1:
            return
        entry = entries[0]
        if entry.left is None or entry.done or self._is_linked(entry):
            return
        path = f"{ENTRIES}/{entry}"
        staged = StagedUki(
            txn=before.txn, sha256=self._esp.digest(path), version=entry.version, slot=entry.slot
        )
        self._esp.rename(path, staged.path)

    def _make_good(self, slot: SlotName) -> None:
        """See to an entry of `slot` without a counter, from a copy of the one that has one."""
        entries = self._entries(slot)
        if any(entry.is_good() for entry in entries):
            return
        if not entries:
            raise BootEnvError(f"{self._esp.name}: slot {slot} has no kernel image; it cannot be committed")
        source = f"{ENTRIES}/{entries[0]}"
        final = entries[0].good()
        for name in self._esp.files(PRIVATE):
            # No entry was made from it, so nothing else leads there.
            if name.startswith(f"{_COPY}{final.stem}.") and not self._was_moved_aside(final):
                self._esp.remove(f"{PRIVATE}/{name}")
        copy = f"{PRIVATE}/{self._esp.free_name(_COPY + final.stem)}"
        expected = self._esp.digest(source)
        self._esp.write(copy, self._esp.pieces(source))
        if self._esp.digest(copy) != expected:
            raise BootEnvError(f"{copy}: does not read back as written; slot {slot} is not committed")
        self._esp.rename(copy, f"{ENTRIES}/{final}")

    def _tidy(self, env: BootEnv) -> None:
        """Bring counters in line, and remove counted names of what is committed."""
        committed = self._entries(env.committed)
        self._remove([entry for entry in committed if not entry.is_good()])
        if env.trial is None or env.trial is env.committed:
            return
        for entry in self._entries(env.trial):
            if entry.left != env.left and (len(self._entries(env.trial)) == 1 or env.left == 0):
                self._recount(entry, env.left)

    def _recount(self, entry: UkiName, left: int) -> None:
        """Change what an entry has left; a count of boots that makes the name a free one."""
        names = self._esp.files(ENTRIES)
        counted = entry.counted(left, done=entry.done)
        while str(counted) in names:
            counted = entry.counted(left, done=counted.done + 1)
        self._esp.rename(f"{ENTRIES}/{entry}", f"{ENTRIES}/{counted}")

    def _is_projected(self, env: BootEnv) -> bool:
        """Whether the names let systemd-boot do what `env` says."""
        if not any(entry.is_good() for entry in self._entries(env.committed)):
            return False
        if env.trial is not None and env.left > 0 and not self._entries(env.trial):
            return False
        return all(
            slot in (env.committed, env.trial) or env.is_ok(slot) or not self._entries(slot)
            for slot in SlotName
        )

    # --- removal --------------------------------------------------------------------------------------------------

    def _remove(self, entries: list[UkiName]) -> None:
        """Take entries out of systemd-boot's sight; for good only where no other name may lead to the same clusters."""
        for entry in entries:
            if self._is_linked(entry):
                aside = f"{PRIVATE}/{self._esp.free_name(f'{_ASIDE}{entry}')}"
                logger.warning("%s may share its clusters with another file; moved to %s", entry, aside)
                self._esp.rename(f"{ENTRIES}/{entry}", aside)
            else:
                self._esp.remove(f"{ENTRIES}/{entry}")

    def _was_moved_aside(self, entry: UkiName) -> bool:
        return any(name.startswith(f"{_ASIDE}{entry}") for name in self._esp.files(PRIVATE))

    def _is_linked(self, entry: UkiName) -> bool:
        """Whether another name may lead to the clusters of `entry`, because a rename was cut.

        A good entry is a file of its own, made by renaming a copy; a counted one had its names from the staged image on.
        """
        for other in self._esp.others_with(entry.stem, str(entry)):
            named = UkiName.parse(other)
            is_copy = (
                named.is_good() if named is not None else other.startswith((_COPY, f"{_ASIDE}{entry.good()}"))
            )
            if is_copy is entry.is_good():
                return True
        return False


def _counted(entries: list[UkiName]) -> int:
    """The boots that the name which systemd-boot goes by has counted; of several it is the one with the most tries."""
    return min((entry.done for entry in entries), default=0)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else 0
