"""`tidewaiter update list|install|activate|cancel`: an update from a directory or USB stick, by a person at the device.

Talks to the updater alone, so it works while the agent or the network is dead. All that is shown comes from the updater's offer
and its status; what the medium says itself is never believed. Ctrl-C ends this program and nothing else: the transaction stays,
and the same command goes on with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidewaiter_core.clock import format_utc
from tidewaiter_core.varlink import VarlinkError

from tidewaiter_agent import cli_medium
from tidewaiter_agent.cli_context import Context, Exit, add
from tidewaiter_agent.cli_follow import Follower, Goal
from tidewaiter_agent.cli_show import NO_WAY_BACK, listing_text, offer_text, question_text
from tidewaiter_agent.errors import MediumError
from tidewaiter_agent.update_rules import RESTING
from tidewaiter_agent.updater_client import CHECK_TIMEOUT_S

if TYPE_CHECKING:
    from tidewaiter_agent.cli_context import Commands

CONSENT_LIFE = timedelta(hours=24)
"""Long enough for an injector that is busy all day, short enough that nobody is surprised next week."""
LOADING = frozenset({"OFFERED", "WAIT_CONSENT", "PREPARE", "TRANSFER", "VERIFY"})
STAGED = frozenset({"STAGED", "WAIT_WINDOW"})


def add_commands(below: Commands) -> None:
    """Register the commands of this module below `tidewaiter update`."""
    listing = add(below, "list", _list, "show the releases on a medium", json_too=True)
    install = add(below, "install", _install, "install a release from a medium", json_too=True)
    for command in (listing, install):
        command.add_argument(
            "--from",
            dest="directory",
            type=Path,
            required=True,
            metavar="DIR",
            help="where the medium is mounted; holds the folder TIDEWAITER",
        )
    install.add_argument(
        "--version", metavar="V", help="this release; the newest that can be installed if not given"
    )
    install.add_argument("--activate", action="store_true", help="restart into it once the injector is idle")
    activate = add(below, "activate", _activate, "restart into the installed release", json_too=True)
    cancel = add(below, "cancel", _cancel, "end the update in hand; the running release stays")
    for command in (install, activate):
        command.add_argument(
            "--irreversible",
            action="store_true",
            help="with --yes: agree also that the earlier release cannot come back",
        )
    for command in (install, activate, cancel):
        command.add_argument("--yes", action="store_true", help="your consent; nothing is asked")


@dataclass(frozen=True)
class Medium:
    """The directory; opened anew for each call, because a stick may be pulled out and put back in between."""

    context: Context
    directory: Path

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call the updater with the medium."""
        source = cli_medium.source_of(self.directory)
        with cli_medium.opened(self.directory) as descriptor:
            return self.context.updater(
                method,
                {"source": source, "medium": 0, **parameters},
                medium=descriptor,
                timeout_s=CHECK_TIMEOUT_S,
            )

    def offers(self) -> list[dict[str, Any]]:
        """The updater's verdict on each release of the medium, newest first."""
        listed = [entry["path"] for entry in self.call("List")["releases"]]
        found = [self.call("Check", release=path)["offer"] for path in listed]
        return sorted(found, key=lambda offer: -int(offer["release"]["sequence"]))

    def install(self, digest: str, consent: Mapping[str, Any] | None) -> dict[str, Any]:
        """Begin, or go on, with this medium."""
        status: dict[str, Any] = self.call("Install", digest=digest, consent=consent)["status"]
        return status

    def give_again(self, digest: str) -> bool:
        """Hand the medium over once more, after it was gone; False while it is not there."""
        try:
            self.install(digest, None)
        except MediumError:
            return False
        except VarlinkError as err:
            if err.code == "source.vanished":
                return False
            raise
        return True


def _list(context: Context, arguments: argparse.Namespace) -> int:
    offers = Medium(context, arguments.directory).offers()
    if arguments.json:
        context.say_json(offers)
    else:
        context.say(listing_text(offers))
    return Exit.OK


def _install(context: Context, arguments: argparse.Namespace) -> int:
    medium = Medium(context, arguments.directory)
    status = context.updater("GetStatus")["status"]
    in_hand = status["release"] if status["phase"] not in RESTING else None
    if in_hand is not None and status["phase"] not in LOADING:
        return _installed_already(context, status, arguments)
    if in_hand is not None:
        if arguments.version not in (None, in_hand["version"]):
            return _busy(context, in_hand)
        release, what = in_hand, offer_text(in_hand, status["target"], None)
    else:
        chosen = _choose(context, medium.offers(), arguments)
        if chosen is None:
            return Exit.REFUSED
        release = chosen["release"]
        what = offer_text(release, chosen["target"], chosen["expected_fetch"])
    if not arguments.json:
        context.say(what)
    refused = _agree_to(context, arguments, release, question_text(release, activate=arguments.activate))
    if refused is not None:
        return refused
    status = medium.install(
        release["digest"],
        _consent(release, activate=arguments.activate, now=context.clock.now_utc()),
    )
    if status["paused"]:
        context.updater("Resume")  # it was paused because of the network, or by somebody before this person
    goal = Goal.RESTARTED if arguments.activate else Goal.STAGED
    return Follower(context, release, goal=goal, as_json=arguments.json, medium=medium.give_again).run()


def _choose(
    context: Context, offers: list[dict[str, Any]], arguments: argparse.Namespace
) -> dict[str, Any] | None:
    if not arguments.json:
        context.say(listing_text(offers) + "\n")
    installable = [
        offer
        for offer in offers
        if offer["installable"] and arguments.version in (None, offer["release"]["version"])
    ]
    if installable:
        return installable[0]
    which = (
        f"version {arguments.version}" if arguments.version else "any release that this device can install"
    )
    context.say(f"expected {which} on {arguments.directory}, found none; nothing was changed")
    return None


def _installed_already(context: Context, status: Mapping[str, Any], arguments: argparse.Namespace) -> int:
    release = status["release"]
    if status["phase"] not in STAGED or arguments.version not in (None, release["version"]):
        return _busy(context, release)
    context.say(f"{release['product']} {release['version']} is installed in slot {status['target']} already")
    return _activate(context, arguments) if arguments.activate else Exit.OK


def _busy(context: Context, release: Mapping[str, Any]) -> int:
    context.say(
        f"{release['product']} {release['version']} is in hand; wait for it, or end it with `tidewaiter update cancel`"
    )
    return Exit.REFUSED


def _activate(context: Context, arguments: argparse.Namespace) -> int:
    status = context.updater("GetStatus")["status"]
    release = status["release"]
    if status["phase"] not in STAGED or release is None:
        context.say(f"no release is installed and waits for its start (phase {status['phase']})")
        return Exit.REFUSED
    refused = _agree_to(context, arguments, release, question_text(release, activate=True, installed=True))
    if refused is not None:
        return refused
    consent = _consent(release, activate=True, now=context.clock.now_utc())
    terms = {"digest": release["digest"], "scope": consent["scope"], "until": consent["expires_utc"]}
    context.updater("Consent", terms)
    return Follower(context, release, goal=Goal.RESTARTED, as_json=arguments.json).run()


def _cancel(context: Context, arguments: argparse.Namespace) -> int:
    status = context.updater("GetStatus")["status"]
    release = status["release"]
    if status["phase"] in RESTING or release is None:
        context.say("no update is in hand")
        return Exit.OK
    name = f"{release['product']} {release['version']}"
    refused = _agree(
        context, arguments, f"End the update to {name}? What was written is kept for a later try."
    )
    if refused is not None:
        return refused
    try:
        after = context.updater("Cancel", {"digest": release["digest"]}, timeout_s=30.0)["status"]
    except VarlinkError as err:
        if not err.name.endswith(".Busy"):
            raise
        phase = err.parameters.get("phase", status["phase"])
        context.say(
            f"{name}: too late to cancel, the device is about to switch releases (phase {phase}); nothing was changed. If it "
            "does not restart within two minutes, try again"
        )
        return Exit.REFUSED
    context.say(f"{name}: canceled; {after['running']['version']} keeps running from slot {after['booted']}")
    return Exit.OK


def _agree_to(
    context: Context, arguments: argparse.Namespace, release: Mapping[str, Any], question: str
) -> int | None:
    """As `_agree`. That there is no way back is in the question; where nothing is asked, it is agreed to by a word of its own."""
    if arguments.yes and not release["reversible"] and not arguments.irreversible:
        context.say(f"this cannot be undone: {NO_WAY_BACK}; give --irreversible too if that is agreed")
        return Exit.USAGE
    return _agree(context, arguments, question)


def _agree(context: Context, arguments: argparse.Namespace, question: str) -> int | None:
    """None if the person agrees, else the exit code."""
    if arguments.yes:
        return None
    if not context.has_person():
        context.say("nobody can be asked here; give --yes if this is agreed. Nothing was changed")
        return Exit.USAGE
    try:
        answer = context.ask(f"{question} [y/N] ")
    except (EOFError, KeyboardInterrupt):
        answer = ""
    if answer.strip().lower() in ("y", "yes"):
        return None
    context.say("not agreed; nothing was changed")
    return Exit.REFUSED


def _consent(release: Mapping[str, Any], *, activate: bool, now: datetime) -> dict[str, Any]:
    """The updater records it under the user who sends it, whatever `who` says."""
    scope = ["install", "activate"] if activate else ["install"]
    return {
        "digest": release["digest"],
        "scope": scope if release["reversible"] else [*scope, "irreversible"],
        "channel": "local",
        "who": "tidewaiter update",
        "given_utc": format_utc(now),
        "expires_utc": format_utc(now + CONSENT_LIFE),
    }
