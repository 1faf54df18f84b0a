"""The stories of one device with the simulated boot loader: installing, failing, canceling, losing what was remembered."""

from __future__ import annotations

from tidewaiter_core.model import SlotName
from tidewaiter_updater.model import source_name
from tidewaiter_updater.phases import Phase

from tests.faults.crash_explorer.bases import (
    after_first_update,
    half_written,
    rolled_back,
    staged_and_canceled,
)
from tests.faults.crash_explorer.invariants import End
from tests.faults.crash_explorer.releases import Made, made
from tests.faults.crash_explorer.scenario import (
    Scenario,
    until_canceled,
    with_daily_restarts,
    with_garbage,
    without_floors,
    without_journal,
    without_state,
)

SICK = {"is_sick": True}
HANGS = {"hangs": True}
STICK = source_name("/media/stick")


def raised() -> Made:
    """A release that forbids older ones."""
    return made("2.0", 2, security_epoch=1)


def irreversible() -> Made:
    """A release whose data the earlier one cannot read."""
    return made("2.0", 2, reversible=False)


def _two() -> tuple[Made, ...]:
    return made("2.0", 2), made("1.0", 1)


_INSTALLING = (
    Scenario(name="full", tells="A healthy release is downloaded in full.", end=End.COMMITS),
    Scenario(
        name="epoch raise",
        tells="A healthy release that closes the door to older ones.",
        end=End.COMMITS,
        offered=raised,
    ),
    Scenario(
        name="irreversible data",
        tells="A healthy release whose data the earlier one cannot read; somebody agrees to that at the device.",
        end=End.COMMITS,
        offered=irreversible,
    ),
    Scenario(
        name="second update",
        tells="The second update in the life of a device goes into the other slot.",
        end=End.COMMITS,
        offered=lambda: made("3.0", 3),
        known=_two,
        base=after_first_update,
        home=SlotName.B,
    ),
    Scenario(
        name="patch",
        tells="The second update arrives as a patch of the first.",
        end=End.COMMITS,
        offered=lambda: made("3.0", 3, patch_from=("2.0", 2)),
        known=_two,
        base=after_first_update,
        home=SlotName.B,
    ),
    Scenario(
        name="patch, failing health",
        tells="The second update arrives as a patch and does not pass its checks.",
        end=End.ROLLS_BACK,
        offered=lambda: made("3.0", 3, patch_from=("2.0", 2)),
        known=_two,
        base=after_first_update,
        home=SlotName.B,
        given=SICK,
    ),
    Scenario(
        name="resume",
        tells="A transfer that a power cut had stopped half-way goes on, and the server's first answer is damaged.",
        end=End.COMMITS,
        base=half_written,
        given={"faulty_answers": 1},
    ),
    Scenario(
        name="equal image",
        tells="The other slot already holds what is offered.",
        end=End.COMMITS,
        base=staged_and_canceled,
    ),
    Scenario(
        name="newer after a failure",
        tells="A release failed on this device some time ago; a newer one is offered and is healthy.",
        end=End.COMMITS,
        offered=lambda: made("3.0", 3),
        known=lambda: (made("1.0", 1), made("2.0", 2)),
        base=rolled_back,
    ),
    Scenario(
        name="from a directory",
        tells="The release comes from a memory stick instead of the network.",
        end=End.COMMITS,
        offered=raised,
        given={"source": STICK},
    ),
    Scenario(
        name="from a directory, then the network",
        tells="The release comes from a memory stick; after the cut the stick is gone and the network has it.",
        end=End.COMMITS,
        at_first={"source": STICK},
    ),
)

_FAILING = (
    Scenario(
        name="failing health",
        tells="A release that would close the door to older ones does not pass its checks.",
        end=End.ROLLS_BACK,
        given=SICK,
        offered=raised,
    ),
    Scenario(
        name="failing health, irreversible data",
        tells="A release whose data the earlier one cannot read does not pass its checks.",
        end=End.ROLLS_BACK,
        given=SICK,
        offered=irreversible,
    ),
    Scenario(
        name="hanging trial",
        tells="The new release hangs each time until the watchdog resets it.",
        end=End.ROLLS_BACK,
        given=HANGS,
    ),
    Scenario(
        name="trial that hangs twice",
        tells="The new release hangs twice and is healthy at the third and last try.",
        end=End.COMMITS_IF_TRIED,
        at_first={"hang_limit": 2},
    ),
    Scenario(
        name="trial that does not load",
        tells="The new release's kernel does not start.",
        end=End.ROLLS_BACK,
        given={"does_not_load": True},
    ),
    Scenario(
        name="rejected in the trial",
        tells="An operator rejects the new release while it is on trial.",
        end=End.ROLLS_BACK,
        given={"is_rejected": True},
    ),
)

_FORGETTING = (
    Scenario(
        name="lost state directory",
        tells="The cut also destroys everything that the updater had remembered.",
        end=End.COMMITS,
        after_cut=without_state,
        offered=raised,
    ),
    Scenario(
        name="lost state directory, failing health",
        tells="The new release does not pass its checks, and the cut destroys everything that the updater had remembered.",
        end=End.ROLLS_BACK,
        given=SICK,
        after_cut=without_state,
    ),
    Scenario(
        name="lost journal",
        tells="The cut also destroys the updater's journal.",
        end=End.COMMITS,
        after_cut=without_journal,
        offered=raised,
    ),
    Scenario(
        name="lost journal, irreversible data",
        tells="The cut also destroys the updater's journal, in an update whose data the earlier release cannot read.",
        end=End.COMMITS,
        offered=irreversible,
        after_cut=without_journal,
    ),
    Scenario(
        name="lost journal, failing health",
        tells="The new release does not pass its checks, and the cut destroys the updater's journal.",
        end=End.ROLLS_BACK,
        given=SICK,
        after_cut=without_journal,
    ),
    Scenario(
        name="lost floors",
        tells="The cut also destroys the record of the oldest release that may be installed.",
        end=End.COMMITS,
        after_cut=without_floors,
        offered=raised,
    ),
    Scenario(
        name="garbage in the state directory",
        tells="After the cut every file of the updater holds garbage.",
        end=End.COMMITS,
        after_cut=with_garbage,
    ),
)

_CANCELING = tuple(
    Scenario(
        name=f"cancel in {phase}",
        tells=f"The update is canceled in the phase {phase}; it is offered again later.",
        end=End.COMMITS,
        play=until_canceled,
        at_first={"cancel_in": phase},
    )
    for phase in (
        Phase.WAIT_CONSENT,
        Phase.PREPARE,
        Phase.TRANSFER,
        Phase.VERIFY,
        Phase.STAGED,
        Phase.WAIT_WINDOW,
        Phase.ARMED,
    )
)

_LYING = (
    *(
        Scenario(
            name=f"slot loses a sector at sync {number}",
            tells="The storage chip reports a write of the other slot as done and loses a part of it.",
            end=End.COMMITS,
            at_first={"slot_lies": frozenset({number})},
        )
        for number in range(3)
    ),
    *(
        Scenario(
            name=f"environment loses write {number}",
            tells="The storage chip reports a write of the boot record as done and loses it.",
            end=End.COMMITS,
            at_first={"env_lies": frozenset({number})},
            play=with_daily_restarts,
            offered=raised,
        )
        for number in range(5)
    ),
)

STORIES: tuple[Scenario, ...] = (*_INSTALLING, *_FAILING, *_FORGETTING, *_CANCELING, *_LYING)
