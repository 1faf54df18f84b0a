"""What a person can do about each outcome: one row per stable code, the source of docs/errors.md. Pure.

Texts say the next action of the person who reads them, not what the program does.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_NETWORK = "Nothing to do now: the update goes on by itself once the server can be reached. If it lasts, check the network."
_RELEASE = "This release does not fit this device. Ask the manufacturer for the right one."
_REPOSITORY = "Do not install. If it repeats, tell the manufacturer's security contact; the device keeps its present release."
_DATA = "Nothing to do: the earlier release comes back with its data. Tell the manufacturer."
_INJECTOR = "Do not start an injection. Call service for the injector's firmware."
_SERVICE = "Call service: the storage of this device needs attention. The present release keeps running."

WHAT_TO_DO: Mapping[str, str] = MappingProxyType(
    {
        "source.unavailable": _NETWORK,
        "source.slow": _NETWORK,
        "source.not-metadata": "A proxy answers in place of the server. Ask the network department to let the server through.",
        "source.vanished": "Put the medium back in and repeat the command; the update goes on where it stopped.",
        "source.path": "Server or medium holds something this device never reads. Use another medium or ask the manufacturer.",
        "source.bad-range": "The server or a proxy sends wrong ranges. Try again; if it repeats, report it to the manufacturer.",
        "source.bad-bytes": "What arrived is not what was signed. Try again; if it repeats, report it to the manufacturer.",
        "trust.repository": _REPOSITORY,
        "trust.threshold": _REPOSITORY,
        "trust.expired": "Check date and time of the device; otherwise the manufacturer has to refresh the repository.",
        "trust.rollback": _REPOSITORY,
        "trust.hash-policy": _REPOSITORY,
        "trust.target": _REPOSITORY,
        "trust.storage": _SERVICE,
        "trust.child": "Try again. If it repeats, restart the device when it is idle, then call service.",
        "trust.floor-lost": "Nothing to do: the floors were taken from the image. Report it if the storage was not exchanged.",
        "release.schema": _RELEASE,
        "release.requires": "Install the release before this one first; it brings what this release needs.",
        "release.hw": _RELEASE,
        "release.from": "Install an intermediate release first; this one does not accept the running release.",
        "release.sequence": "Nothing to do: the running release is the same or newer.",
        "release.epoch": "Nothing to do: this release is older than a security fix and is never installed.",
        "release.data-schema": "Install an intermediate release first; this one cannot read the present data.",
        "release.quarantined": "This release failed here before. Wait for a newer one, or let service clear the quarantine.",
        "release.rollout": "Nothing to do: the release is not yet due on this device.",
        "release.permit": "A downgrade needs a permit signed by the manufacturer and a consent on the device.",
        "release.uki": "This release brings no kernel for this device's boot loader. Ask the manufacturer for the right one.",
        "release.version": "Ask the manufacturer: the boot loader of this device only starts a newer version number.",
        "release.unknown": "Ask for the offer again (check), then install.",
        "payload.magic": _RELEASE,
        "payload.version": _RELEASE,
        "payload.length": _RELEASE,
        "payload.limit": _RELEASE,
        "payload.map": _RELEASE,
        "payload.frame": _RELEASE,
        "payload.chunk": _RELEASE,
        "slot.size": "The image is larger than the slot. Ask the manufacturer; the present release keeps running.",
        "slot.busy": "Something uses the inactive slot. Restart the device when it is idle and try again.",
        "slot.read-only": _SERVICE,
        "slot.booted": "Call service: the slot table does not match the running system.",
        "slot.label": "Call service: the partition table does not match the configuration.",
        "slot.io": "Try again. If it repeats, call service: the storage refuses writes.",
        "slot.medium": _SERVICE,
        "slot.active-differs": "Nothing to do now. Tell service: the running slot differs from what was installed.",
        "boot.env-layout": "Call service: the boot environment is not one this software can change safely.",
        "boot.env-invalid": "Call service, or run `tidewaiter update repair-env` after checking the device.",
        "boot.env-write": _SERVICE,
        "boot.slot-mismatch": "Restart the device when it is idle. If it stays, call service; nothing is installed until then.",
        "data.io": _SERVICE,
        "data.no-space": "Free space on the data partition, then install the release again.",
        "data.deadline": _DATA,
        "data.program": _DATA,
        "data.special": _DATA,
        "data.limit": _DATA,
        "data.old-set-changed": "Call service before anything else: a program of the new release wrote into the present data.",
        "data.missing": "Call service: the data this release needs are not there. Nothing was removed or overwritten.",
        "data.live-lost": "Call service: nothing says which data set is in use. Nothing was removed or overwritten.",
        "update.budget": "The download is larger than allowed. Raise the limit or install from a medium.",
        "update.no-space": "Free space on the data partition, then try again.",
        "update.busy": "Wait for the running update, or cancel it.",
        "update.irreversible": "This release cannot be undone: the earlier one cannot read its data. Agree at the device.",
        "update.data": "Nothing to do: the device prepares its data and goes on by itself.",
        "update.consent": "Give consent to this release on the device or in the site's policy.",
        "update.window": "Wait for the maintenance window, or open one.",
        "update.interlock": "Bring the injector to idle and leave it alone; the update goes on by itself.",
        "update.audit-full": "Let the audit log be collected; nothing is installed while it cannot be written.",
        "update.attempts": "Try again later. If it repeats, tell the manufacturer what was shown before.",
        "update.canceled": "Nothing to do. The update can be started again.",
        "update.refused": "The device cannot do this now; the detail says why.",
        "update.rejected": "Nothing to do. The release stays refused until it is cleared.",
        "update.committed": "Nothing to do.",
        "update.rolled-back": "Nothing to do: the earlier release runs. Wait for a newer release.",
        "update.not-rebooted": "Restart the device when it is idle, or wait: it is tried again.",
        "update.repaired": "Nothing to do now. Tell service that the boot environment had to be rebuilt.",
        "update.disabled": "Updates are switched off by site policy.",
        "update.staged": "Nothing to do: the release waits to be activated.",
        "update.no-trial": "Nothing to do: this start is no trial.",
        "update.unconfirmed": "The new release is not healthy. Restart the device when it is idle; the earlier one comes back.",
        "health.root": _SERVICE,
        "health.medium": _SERVICE,
        "health.units": "Nothing to do: the earlier release comes back. Tell the manufacturer.",
        "health.hal": "Nothing to do: the earlier release comes back. Tell the manufacturer.",
        "health.injector": "Check that the injector is switched on and connected before the next attempt.",
        "health.firmware": "Call service: the injector's firmware does not match the new release; the earlier one comes back.",
        "health.data": "Nothing to do: the earlier release comes back. Tell the manufacturer.",
        "health.clock": "Check date and time of the device.",
        "health.disk": "Free space on the data partition before the next attempt.",
        "health.watchdog": _SERVICE,
        "health.server": "Check the network connection before the next attempt.",
        "health.operator": "Nothing to do: the earlier release comes back, as was asked for at the device.",
        "health.missing": "Nothing to do: the checks have not finished yet.",
        "health.failed": "Nothing to do: the earlier release comes back.",
        "health.interrupted": "Nothing to do: the checks are run again.",
        "health.deadline": "Nothing to do: the earlier release comes back. Tell the manufacturer.",
        "firmware.pending": "Wait until the injector has finished its firmware update, then try again.",
        "fw.denied": "Bring the injector into service state and give consent, then try again.",
        "fw.hash": _RELEASE,
        "fw.wrong-image": _RELEASE,
        "fw.unclean": _INJECTOR,
        "fw.stuck": "Check the cable to the injector, then try again. If it repeats, call service.",
        "fw.verify": "Try again. If it repeats, call service for the injector.",
        "fw.reverted": "The injector runs its earlier firmware. Tell service before the next attempt.",
        "fw.dead": "Do not use the injector. Call service.",
        "core.state": _SERVICE,
        "core.state-write": "Free space on the data partition. If there is enough, call service: the storage refuses writes.",
        "core.second-instance": "Wait for the running update, or cancel it.",
        "audit.unavailable": "Let the audit log be collected; nothing is installed while it cannot be written.",
    }
)


def what_to_do(code: str) -> str:
    """The advice for `code`; codes of other components get a neutral sentence."""
    return WHAT_TO_DO.get(code, "Try again. If it repeats, report the code to service.")
