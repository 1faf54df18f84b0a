"""`tidewaiter consent`: questions that wait, grants that live, and your answer. Needs group tidewaiter-operator to change
anything.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tidewaiter_core.clock import SystemClock, format_utc
from tidewaiter_core.errors import TidewaiterError

from tidewaiter_agent.cli_context import Context, Exit, add
from tidewaiter_agent.cli_show import NO_WAY_BACK, grant_text, prompt_text

if TYPE_CHECKING:
    from tidewaiter_agent.cli_context import Commands

SCOPE = ["install", "activate"]
IRREVERSIBLE = "irreversible"


def add_commands(commands: Commands) -> None:
    """Register the commands of this module."""
    consent = commands.add_parser(
        "consent", help="your consent to updates", description="Your consent to updates."
    )
    below = consent.add_subparsers(metavar="ACTION", required=True)
    add(below, "list", _list, "questions that wait and grants that live", json_too=True)
    answer = add(below, "answer", _answer, "answer a question")
    answer.add_argument("prompt", help="id of the question, or its first characters")
    answer.add_argument("reply", choices=("yes", "no"))
    grant = add(below, "grant", _grant, "agree to a release without being asked")
    grant.add_argument("digest", help="digest of the release, 64 hexadecimal digits")
    for command in (answer, grant):
        command.add_argument(
            "--minutes",
            type=int,
            default=0,
            help="how long the consent lives; the site's maximum if not given",
        )
        command.add_argument(
            "--irreversible", action="store_true", help="agree also that the earlier release cannot come back"
        )
    revoke = add(below, "revoke", _revoke, "take a grant back; works without network")
    revoke.add_argument("grant", help="id of the grant")


def _list(context: Context, arguments: argparse.Namespace) -> int:
    prompts = context.agent("ListPrompts")["prompts"]
    grants = context.agent("ListGrants")["grants"]
    if arguments.json:
        context.say_json({"prompts": prompts, "grants": grants})
        return Exit.OK
    for prompt in prompts:
        context.say(prompt_text(prompt) + "\n")
    for grant in grants:
        context.say("grant  " + grant_text(grant))
    if not prompts and not grants:
        context.say("no question waits, no grant lives")
    return Exit.OK


def _answer(context: Context, arguments: argparse.Namespace) -> int:
    prompt = _prompt(context, arguments.prompt)
    yes = arguments.reply == "yes"
    if yes and prompt["needs_local"] and not arguments.irreversible:
        _must_be_reversible(context, prompt["digest"])
    reply = context.agent(
        "Answer", {"prompt_id": prompt["id"], "yes": yes, "duration_s": max(0, arguments.minutes) * 60}
    )
    if not yes:
        context.say(f"{prompt['product']} {prompt['version']}: refused; not asked again for 24 hours")
        return Exit.OK
    if prompt["needs_local"]:
        _tell_updater(context, reply["grant"], arguments)
    context.say(f"{prompt['product']} {prompt['version']}: agreed; grant {grant_text(reply['grant'])}")
    return Exit.OK


def _grant(context: Context, arguments: argparse.Namespace) -> int:
    digest = arguments.digest.lower()
    if not arguments.irreversible:
        _must_be_reversible(context, digest)
    grant = context.agent("Grant", {"digest": digest, "duration_s": max(0, arguments.minutes) * 60})["grant"]
    try:
        _tell_updater(context, grant, arguments)
    except TidewaiterError as err:
        # It may simply not have the release in hand yet; a release that needs no local consent does not care.
        context.say(
            f"the updater did not take it ({err.code}); if it asks for consent later, answer the question then"
        )
    context.say(f"grant {grant_text(grant)}")
    return Exit.OK


def _revoke(context: Context, arguments: argparse.Namespace) -> int:
    context.agent("Revoke", {"grant_id": arguments.grant})
    context.say(f"grant {arguments.grant}: revoked")
    return Exit.OK


def _tell_updater(context: Context, grant: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Under our own credentials: the updater does not believe the agent about a person."""
    until = SystemClock().now_utc() + timedelta(seconds=grant["remaining_s"])
    scope = [*SCOPE, IRREVERSIBLE] if arguments.irreversible else SCOPE
    context.updater("Consent", {"digest": grant["digest"], "scope": scope, "until": format_utc(until)})


def _must_be_reversible(context: Context, digest: str) -> None:
    """Nobody agrees to something that cannot be undone without having read that."""
    try:
        release = context.updater("GetStatus")["status"].get("release")
    except TidewaiterError:
        return  # the updater itself asks for those words before it does anything
    if release is not None and release["digest"] == digest and not release["reversible"]:
        name = f"{release['product']} {release['version']}"
        text = f"{name} cannot be undone: {NO_WAY_BACK}; agree to that with --irreversible"
        raise TidewaiterError(text, code="consent.irreversible")


def _prompt(context: Context, start: str) -> dict[str, Any]:
    found = [prompt for prompt in context.agent("ListPrompts")["prompts"] if prompt["id"].startswith(start)]
    if len(found) == 1:
        return dict(found[0])
    text = "no question with this id waits" if not found else f"{len(found)} questions start like this"
    raise TidewaiterError(f"{start!r}: {text}; see `tidewaiter consent list`", code="consent.not-pending")
