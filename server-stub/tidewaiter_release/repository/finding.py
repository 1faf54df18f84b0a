"""What `lint` found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """Whether devices are affected now."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    severity: Severity
    check: str
    """Name of the check, to search for."""
    text: str

    def __str__(self) -> str:
        return f"{self.severity} {self.check}: {self.text}"


def error(check: str, text: str) -> Finding:
    return Finding(Severity.ERROR, check, text)


def warning(check: str, text: str) -> Finding:
    return Finding(Severity.WARNING, check, text)
