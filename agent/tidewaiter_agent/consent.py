"""Update consent: prompts, grants and denials, all bound to the digest of one release. Durable.

Rules (agent design sections 5, 8, 9): a prompt that nobody answers in time is a denial; a denial is not asked again for 24 hours
unless the release changes; a grant counts on boot time and dies with a reboot; at most three prompts wait; nothing that arrives
from the network answers a prompt.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tidewaiter_core.clock import Clock, format_utc
from tidewaiter_core.durable import load_document, save_document
from tidewaiter_core.errors import StateError

from tidewaiter_agent.consent_values import (
    ConsentRecord,
    Decision,
    Denial,
    Grant,
    Moment,
    Prompt,
    Subject,
    denial_from,
    grant_from,
    lives,
    prompt_from,
)
from tidewaiter_agent.errors import ConsentError

SCHEMA = 1
PROMPT_LIMIT = 3
DENIAL_S = 24 * 3600
DENIAL_LIMIT = 16
SCOPE = ("install", "activate")


class ConsentStore:
    """All consent of this device. Thread-safe; every change is on storage before its effect is visible."""

    def __init__(
        self,
        state_file: Path,
        *,
        clock: Clock,
        boot_id: str,
        ask_timeout_s: int,
        grant_max_s: int,
        on_record: Callable[[ConsentRecord], None],
    ) -> None:
        """Load the store; StateError leaves an unreadable file alone: consent is never guessed."""
        self._file = state_file
        self._clock = clock
        self._boot_id = boot_id
        self._ask_timeout_s = ask_timeout_s
        self._grant_max_s = grant_max_s
        self._on_record = on_record
        self._lock = threading.RLock()
        document = load_document(state_file, schema=SCHEMA) or {}
        try:
            self._prompts = [prompt_from(entry) for entry in document.get("prompts", [])]
            self._grants = [grant_from(entry) for entry in document.get("grants", [])]
            self._denials = [denial_from(entry) for entry in document.get("denials", [])]
        except (KeyError, TypeError, ValueError) as err:
            raise StateError(
                f"{state_file}: not a consent store ({err}); left as it is, updates wait"
            ) from err

    def ask(self, subject: Subject, *, reason: str) -> Decision:
        """Where consent for `subject` stands; raises a prompt if nobody was asked yet.

        Raises:
            ConsentError: Three prompts wait already.
        """
        with self._lock:
            self._expire()
            if self.grant_for(subject.digest) is not None:
                return Decision.GRANTED
            if any(denial.digest == subject.digest for denial in self._denials):
                return Decision.DENIED
            if any(prompt.subject.digest == subject.digest for prompt in self._prompts):
                return Decision.PENDING
            if len(self._prompts) >= PROMPT_LIMIT:
                raise ConsentError(
                    f"release {subject.version}: {PROMPT_LIMIT} questions wait for an answer already; asked again later",
                    code="consent.busy",
                    retryable=True,
                )
            prompt = Prompt(
                id=secrets.token_hex(8),
                subject=subject,
                reason=reason,
                asked=self._now(),
                timeout_s=self._ask_timeout_s,
            )
            self._save(prompts=[*self._prompts, prompt])
            return Decision.PENDING

    def withdraw(self, digest: str) -> None:
        """The question is moot: the action was cancelled or replaced."""
        with self._lock:
            left = [prompt for prompt in self._prompts if prompt.subject.digest != digest]
            if len(left) != len(self._prompts):
                self._save(prompts=left)

    def answer(self, prompt_id: str, *, yes: bool, who: str, duration_s: int = 0) -> Grant | None:
        """A person answers; the grant for yes, None for no.

        Raises:
            ConsentError: No such prompt waits (any more).
        """
        with self._lock:
            self._expire()
            prompt = next((p for p in self._prompts if p.id == prompt_id), None)
            if prompt is None:
                raise ConsentError(
                    f"prompt {prompt_id[:40]!r}: not waiting for an answer; it was answered, withdrawn or timed out",
                    code="consent.not-pending",
                )
            left = [p for p in self._prompts if p is not prompt]
            if yes:
                return self._give(prompt.subject.digest, who=who, duration_s=duration_s, prompts=left)
            self._deny(prompt.subject.digest, why="refused", who=who, prompts=left)
            return None

    def grant(self, digest: str, *, who: str, duration_s: int = 0) -> Grant:
        """A person agrees to a release without having been asked; also answers a waiting prompt."""
        with self._lock:
            left = [p for p in self._prompts if p.subject.digest != digest]
            return self._give(digest, who=who, duration_s=duration_s, prompts=left)

    def revoke(self, grant_id: str, *, who: str) -> None:
        """Take a grant back.

        Raises:
            ConsentError: No such grant lives.
        """
        with self._lock:
            self._expire()
            grant = next((g for g in self._grants if g.id == grant_id), None)
            if grant is None:
                raise ConsentError(
                    f"grant {grant_id[:40]!r}: no such grant lives", code="consent.no-such-grant"
                )
            self._save(grants=[g for g in self._grants if g is not grant])
            self._on_record(
                ConsentRecord(kind="consent.revoked", who=who, digest=grant.digest, detail=grant.id)
            )

    def grant_for(self, digest: str) -> Grant | None:
        """The living grant for a release."""
        return next((g for g in self.grants() if g.digest == digest), None)

    def grants(self) -> list[Grant]:
        """All living grants."""
        with self._lock:
            now = self._now()
            return [g for g in self._grants if lives(g, now)]

    def prompts(self) -> list[Prompt]:
        """All questions that wait."""
        with self._lock:
            self._expire()
            return list(self._prompts)

    def remaining_s(self, entry: Prompt | Grant) -> int:
        """Seconds until a prompt times out or a grant ends."""
        if isinstance(entry, Prompt):
            return max(0, int(entry.timeout_s - entry.asked.age_s(self._now())))
        return max(0, int(entry.duration_s - entry.given.age_s(self._now())))

    def expires_utc(self, grant: Grant) -> str:
        """When a grant ends, as text for the updater."""
        now_utc = self._clock.now_utc()
        return format_utc(
            now_utc.fromtimestamp(now_utc.timestamp() + self.remaining_s(grant), now_utc.tzinfo)
        )

    def expire(self) -> None:
        """Turn prompts that timed out into denials; called regularly."""
        with self._lock:
            self._expire()

    def _expire(self) -> None:
        now = self._now()
        for prompt in [p for p in self._prompts if p.asked.age_s(now) >= p.timeout_s]:
            left = [p for p in self._prompts if p.id != prompt.id]
            self._deny(prompt.subject.digest, why="timeout", who="nobody", prompts=left)
        dead = [g for g in self._grants if not lives(g, now)]
        old = [d for d in self._denials if d.denied.age_s(now) >= DENIAL_S]
        if dead or old:
            self._save(
                grants=[g for g in self._grants if g not in dead],
                denials=[d for d in self._denials if d not in old],
            )
        for grant in dead:
            self._on_record(
                ConsentRecord(kind="consent.expired", who="system", digest=grant.digest, detail=grant.id)
            )

    def _give(self, digest: str, *, who: str, duration_s: int, prompts: list[Prompt]) -> Grant:
        wanted_s = duration_s if duration_s > 0 else self._grant_max_s
        grant = Grant(
            id=secrets.token_hex(8),
            digest=digest,
            channel="local",
            given_by=who,
            given=self._now(),
            duration_s=min(wanted_s, self._grant_max_s),
        )
        # Audit first: what cannot be recorded is not granted.
        self._on_record(ConsentRecord(kind="consent.given", who=who, digest=digest, detail=grant.id))
        self._save(
            prompts=prompts,
            grants=[*(g for g in self._grants if g.digest != digest), grant],
            denials=[d for d in self._denials if d.digest != digest],
        )
        return grant

    def _deny(self, digest: str, *, why: str, who: str, prompts: list[Prompt]) -> None:
        denial = Denial(digest=digest, denied=self._now(), why=why)
        kept = [d for d in self._denials if d.digest != digest][-(DENIAL_LIMIT - 1) :]
        self._save(prompts=prompts, denials=[*kept, denial])
        self._on_record(ConsentRecord(kind="consent.refused", who=who, digest=digest, detail=why))

    def denial_reason(self, digest: str) -> str:
        """`timeout`, `refused`, or empty."""
        with self._lock:
            return next((d.why for d in self._denials if d.digest == digest), "")

    def _now(self) -> Moment:
        return Moment(
            utc=format_utc(self._clock.now_utc()), boot_id=self._boot_id, boottime_s=self._clock.boottime_s()
        )

    def _save(
        self,
        *,
        prompts: list[Prompt] | None = None,
        grants: list[Grant] | None = None,
        denials: list[Denial] | None = None,
    ) -> None:
        """Storage first, memory second."""
        new_prompts = self._prompts if prompts is None else prompts
        new_grants = self._grants if grants is None else grants
        new_denials = self._denials if denials is None else denials
        document: dict[str, Any] = {
            "prompts": [asdict(p) for p in new_prompts],
            "grants": [asdict(g) for g in new_grants],
            "denials": [asdict(d) for d in new_denials],
        }
        save_document(self._file, document, schema=SCHEMA)
        self._prompts, self._grants, self._denials = new_prompts, new_grants, new_denials
