"""What may leave the process as text: secrets and patient data are removed, control characters made visible.

Used by the log and again by every exporter. The expressions are written so that a line costs linear time: what they
repeat without bound they also consume, and what can fail afterwards is bounded. It is a net below the rule that
secrets are a type (`Secret`) and are not formatted in the first place.
"""

from __future__ import annotations

import hmac
import re
from typing import Final, NoReturn

LINE_LIMIT_CHARS: Final = 8192
REMOVED: Final = "<removed>"

_SEPARATOR: Final = r"""["']{0,2}\s{0,8}[:=]\s{0,8}"""
_VALUE: Final = r"""(?:b?"[^"\n]*"?|b?'[^'\n]*'?|[^\s,;&"'}\])]+)"""
_GUARDED_WORDS: Final = (
    r"passw(?:or)?d|passwd|passphrase|\bpwd|secret|token|api[_-]?key|private[_-]?key|credential|cookie|\bpin"
)
_PATIENT_WORDS: Final = r"patient|\bmrn\b|birth[_-]?date|date[_-]of[_-]birth|\bdob\b|accession"

_PEM: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{1,64}-----")
_PEM_END: Final = re.compile(r"-----END [A-Z0-9 ]{1,64}-----")
_RULES: Final = (
    # HL7 patient segments and DICOM group 0010, then any person name in caret notation.
    (re.compile(r"\b(PID|NK1|PV1|GT1|IN1|MRG)\|[^\r\n]*"), rf"\1|{REMOVED}"),
    (re.compile(r"\((0010|0040),([0-9a-fA-F]{4})\)[^\r\n]*"), rf"(\1,\2) {REMOVED}"),
    (re.compile(r"(?<![^\W\d_])[^\W\d_]{2,64}\^[^\W\d_][^\s|\"',;]*"), REMOVED),
    (re.compile(r"(?i)\b((?:proxy-)?authorization" + _SEPARATOR + r")[^\r\n]*"), rf"\1{REMOVED}"),
    (re.compile(r"://[^\s/]*@"), rf"://{REMOVED}@"),
    (
        re.compile(r"(?i)\b(bearer|negotiate|ntlm|(?:target|gateway)token)(\s{1,8})[\w.~+/=-]{8,}"),
        rf"\1\2{REMOVED}",
    ),
    (re.compile(r"\b((?i:basic)\s{1,8})(?=[a-z]{0,256}[A-Z0-9+/=])[A-Za-z0-9+/=]{8,}"), rf"\1{REMOVED}"),
    (re.compile(r"\beyJ[\w.-]{16,}"), REMOVED),
    (re.compile(r"(?i)((?:" + _GUARDED_WORDS + r")[\w-]{0,32}" + _SEPARATOR + ")" + _VALUE), rf"\1{REMOVED}"),
    (
        re.compile(
            r"(?i)((?:"
            + _PATIENT_WORDS
            + r")[\w-]{0,32}(?:[ ](?:name|id|number))?"
            + _SEPARATOR
            + r")[^\r\n,;}]*"
        ),
        rf"\1{REMOVED}",
    ),
    (re.compile(r"\b(MRN\s{0,4}#?\s{0,4})\d[\w-]*"), rf"\1{REMOVED}"),
)

# C0 with tab and newline, DEL, C1 with NEL and CSI, line and paragraph separator, direction marks, lone surrogates.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def redact(text: str) -> str:
    """`text` without secrets and patient data; lines above 8 KiB are cut and marked."""
    cut = "\n".join(_cut(line) for line in text.split("\n"))
    cut = _without_pem(cut)
    for pattern, replacement in _RULES:
        cut = pattern.sub(replacement, cut)
    return cut


def _cut(line: str) -> str:
    if len(line) <= LINE_LIMIT_CHARS:
        return line
    return f"{line[:LINE_LIMIT_CHARS]}... (cut, {len(line)} characters)"


def _without_pem(text: str) -> str:
    """Remove every PEM object; one without an end goes to the end of the text."""
    parts: list[str] = []
    position = 0
    while (begin := _PEM.search(text, position)) is not None:
        parts += (text[position : begin.start()], "<PEM removed>")
        end = _PEM_END.search(text, begin.end())
        position = len(text) if end is None else end.end()
    return "".join((*parts, text[position:]))


def escape(text: str) -> str:
    """`text` on one line and harmless for a terminal: control and direction characters as visible escapes."""
    return _UNSAFE.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    character = match[0]
    short = _SHORT.get(character)
    if short is not None:
        return short
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class Secret:
    """A text that must not be shown: it prints as `<set>` (or `<empty>`) wherever it ends up, by accident or not."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself; the call is what a reviewer looks for."""
        return self._text

    def __repr__(self) -> str:
        return "<set>" if self._text else "<empty>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not stored or sent")
