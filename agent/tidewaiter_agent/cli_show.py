"""What the command line prints: documents in, text out. Pure; everything from outside has its control characters made visible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tidewaiter_core.redaction import escape

BAR_CHARS = 24
MIB = 1024 * 1024


def bar(done: int, total: int, *, width: int = BAR_CHARS) -> str:
    """`[#####----]  41 %`; an unknown total is shown as such."""
    if total <= 0:
        return "[" + "-" * width + "]    ? %"
    filled = min(width, width * done // total)
    return f"[{'#' * filled}{'-' * (width - filled)}] {min(100, 100 * done // total):4d} %"


NO_WAY_BACK = "the earlier release cannot read the data that this one makes, and does not start any more"


def duration(seconds: int) -> str:
    """`0:07`, `2:03:04`."""
    minutes, second = divmod(max(0, seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def update_line(status: Mapping[str, Any]) -> str:
    """The updater's status as one line: phase, bar, bytes, speed, remaining time, what it waits for."""
    counts = status["bytes"]
    done = counts["written"] + counts["skipped"]
    parts = [f"{status['phase']:<12}"]
    if counts["total"] > 0:
        parts += [bar(done, counts["total"]), f"{done / MIB:.1f}/{counts['total'] / MIB:.1f} MiB"]
    if status["speed_bytes_per_s"] > 0:
        parts.append(f"{status['speed_bytes_per_s'] / MIB:.1f} MiB/s")
    if status.get("remaining_s") is not None:
        parts.append(f"{duration(status['remaining_s'])} left")
    if status["paused"]:
        parts.append("paused")
    if status["waiting_for"]:
        parts.append("waiting for " + ", ".join(status["waiting_for"]))
    return escape("  ".join(parts))


def update_text(status: Mapping[str, Any]) -> str:
    """The updater's status on a few lines."""
    running, release, last, counts = (
        status["running"],
        status.get("release"),
        status.get("last"),
        status["bytes"],
    )
    rows = [
        (
            "running",
            f"{running['version']} from slot {status['booted']} (committed: slot {status['committed']})",
        ),
        ("update", update_line(status)),
    ]
    if release:
        rows.append(
            ("release", f"{release['product']} {release['version']} -> slot {status.get('target') or '?'}")
        )
        rows.append(("digest", release["digest"]))
        if not release["reversible"]:
            rows.append(("can be undone", f"no: {NO_WAY_BACK}"))
    if counts["total"] > 0:
        rows.append(
            (
                "fetched",
                f"{counts['fetched'] / MIB:.1f} of {counts['expected_fetch'] / MIB:.1f} MiB {_way(status)}",
            )
        )
        by_source = ", ".join(
            f"{name} {value / MIB:.1f}" for name, value in status["by_source"].items() if value
        )
        rows.append(("MiB by origin", by_source or "-"))
        rows.append(("tries left", str(status["tries_left"])))
    floors = status["floors"]
    rows.append(
        (
            "floors",
            f"sequence {floors['sequence']}, security epoch {floors['security_epoch']}, time {floors['time_utc'] or '-'}",
        )
    )
    if status.get("degraded"):
        rows.append(("degraded", status["degraded"]))
    if last:
        rows.append(("last", f"{last['code']}: {last['text']}"))
        if last["what_to_do"]:
            rows.append(("what to do", last["what_to_do"]))
    return table(rows)


def _way(status: Mapping[str, Any]) -> str:
    """Where the bytes come from, for people."""
    source = status.get("source") or "relay"
    return "over the network" if source == "relay" else f"from {source.removeprefix('directory:')}"


def listing_text(offers: Sequence[Mapping[str, Any]]) -> str:
    """The releases of a medium, one line each."""
    rows = []
    for offer in offers:
        release = offer["release"]
        verdict = "can be installed" if offer["installable"] else f"not for this device now: {offer['code']}"
        rows.append(
            (escape(f"{release['product']} {release['version']}"), f"{release['risk']:<8}  {verdict}")
        )
    return table(rows) if rows else "no release for the product of this device on this medium"


_CONSENT = {
    "none": "the release asks for none; yours is recorded",
    "site": "of the site, or yours here at the device",
    "local": "of a person at the device: yours",
}


def offer_text(release: Mapping[str, Any], target: str | None, fetch_bytes: int | None) -> str:
    """A release, with everything that a person needs to agree to it."""
    notes = release["notes"].get("en") or next(iter(release["notes"].values()), "")
    size = "" if fetch_bytes is None else f"at most {fetch_bytes / MIB:.1f} MiB are read"
    rows = [
        ("release", f"{release['product']} {release['version']}  (sequence {release['sequence']})"),
        ("digest", release["digest"]),
        ("risk", release["risk"]),
        ("notes", notes or "-"),
        ("size", size or "already begun"),
        ("goes to", f"slot {target or '?'}"),
        ("consent", _CONSENT.get(release["consent"], release["consent"])),
    ]
    return table(rows if release["reversible"] else [*rows, ("can be undone", f"no: {NO_WAY_BACK}")])


def question_text(release: Mapping[str, Any], *, activate: bool, installed: bool = False) -> str:
    """What a person agrees to, in one sentence."""
    name = escape(f"{release['product']} {release['version']}")
    restart = "restart the device into it as soon as the injector is idle"
    warning = "" if release["reversible"] else f" It cannot be undone: {NO_WAY_BACK}."
    if installed:
        return f"Start {name}: {restart}?{warning}"
    if activate:
        return f"Install {name} and {restart}?{warning}"
    return f"Install {name}? The running release keeps running until you start the new one.{warning}"


def wait_text(last: Mapping[str, Any]) -> str:
    """Why an update waits, and what a person can do about it."""
    return table([("waits", f"{last['code']}: {last['text']}"), ("what to do", last["what_to_do"])])


def end_text(status: Mapping[str, Any]) -> str:
    """How an update stands when nothing more is done for it by itself."""
    release, last = status.get("release"), status.get("last")
    if status["phase"] in ("STAGED", "WAIT_WINDOW") and release:
        return escape(
            f"{release['product']} {release['version']} is in slot {status['target']}, read back and right. "
            f"{status['running']['version']} keeps running; `tidewaiter update activate` starts the new release."
        )
    rows = [("ended", status["phase"])]
    if last:
        rows.append(("reason", f"{last['code']}: {last['text']}"))
        rows.append(("what to do", last["what_to_do"]))
    return table(rows)


def status_text(
    agent: Mapping[str, Any], update: Mapping[str, Any] | str, injector: Mapping[str, Any] | str
) -> str:
    """One screen: device, server, update, injector, reports, audit. A text instead of a document says why there is none."""
    server = agent["server"]
    rows = [
        (
            "device",
            f"{agent['device_id']}  (agent {agent['agent_version']}, up {duration(agent['uptime_s'])})",
        ),
        ("server", f"{server['url']}  {'online' if server['online'] else 'OFFLINE'}"),
        ("last contact", server["last_success_utc"] or "never"),
    ]
    if server["next_poll_s"] is not None:
        rows.append(("next poll", f"in {duration(server['next_poll_s'])}"))
    if server["error_code"]:
        rows.append(("problem", f"{server['error_code']}: {server['error_text']}"))
    if agent["identity_finding"]:
        rows.append(("certificate", agent["identity_finding"]))
    rows.append(("clock", agent["clock_state"]))
    if isinstance(update, str):
        rows.append(("update", update))
    else:
        running = update["running"]
        rows.append(("running", f"{running['version']} from slot {update['booted']}"))
        rows.append(("update", update_line(update)))
    action = agent.get("action")
    if action:
        rows.append(("action", f"{action['id']}: {action['release']} ({action['stage']}) {action['detail']}"))
    if agent["prompts"]:
        rows.append(("question", f"{agent['prompts']} waiting for your answer: tidewaiter consent list"))
    rows.append(("injector", _injector(injector)))
    rows += list(_reports(agent))
    return table(rows)


def _injector(injector: Mapping[str, Any] | str) -> str:
    if isinstance(injector, str):
        return injector
    state = injector["state"]
    value = state.get("value") or "unknown"
    return f"{value} (quality {state['quality']}, link {injector['link']})"


def _reports(agent: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for entry in agent["outbox"]["classes"]:
        stopped = f"  STOPPED: {entry['stopped']}" if entry["stopped"] else ""
        dropped = f", {entry['dropped']} dropped" if entry["dropped"] else ""
        yield f"outbox {entry['name']}", f"{entry['items']} waiting{dropped}{stopped}"
    kept = agent["outbox"]
    if kept["dead_letters"] or kept["quarantined"]:
        yield "outbox", f"{kept['dead_letters']} dead letters, {kept['quarantined']} in quarantine"
    for chain in agent["audit"]:
        yield (
            f"audit {chain['component']}",
            f"shipped to {chain['shipped_seq']} of {chain['next_seq']}, {chain['state']}",
        )


def prompt_text(prompt: Mapping[str, Any]) -> str:
    """A question, with everything a person needs for an answer."""
    notes = prompt["notes"].get("en") or next(iter(prompt["notes"].values()), "")
    where = "here at the device only" if prompt["needs_local"] else "here or by the site"
    return table(
        [
            ("question", prompt["id"]),
            ("what", prompt["reason"]),
            ("release", f"{prompt['product']} {prompt['version']}  risk {prompt['risk'] or 'not stated'}"),
            ("digest", prompt["digest"]),
            ("notes", notes or "-"),
            ("asked", f"{prompt['asked_utc']}, no answer in {duration(prompt['remaining_s'])} means no"),
            ("consent", where),
        ]
    )


def grant_text(grant: Mapping[str, Any]) -> str:
    """A grant on one line."""
    scope = "+".join(grant["scope"])
    left = duration(grant["remaining_s"])
    return escape(f"{grant['id']}  {scope}  {grant['digest'][:16]}  by {grant['given_by']}  {left} left")


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {escape(text)}" for name, text in rows)
