"""Holds the documents against the programs: every command in a `console` block exists, every make target, every link.

For `$ tidewaiter-release build rootfs --out build ...` the subcommand must exist and each option must stand in its `--help`.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.reference import ROOT, help_text, programs, subcommands

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs")
_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
_WORD = re.compile(r"^[a-z][a-z0-9-]*$")


def findings() -> Iterator[str]:
    """One sentence per promise that a document makes and the repository does not keep."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = set(programs())
    for path in documents():
        text = path.read_text()
        where = path.relative_to(ROOT)
        for block in _BLOCK.findall(text):
            for line in block.splitlines():
                if line.startswith("$ "):
                    yield from _command(
                        f"{where}: `{line}`", shlex.split(line[2:], comments=True), known, targets
                    )
        for target in re.findall(r"`make ([a-z-]+)`", text):
            if target not in targets:
                yield f"{where}: `make {target}` is no target of the Makefile"
        for link in _LINK.findall(text):
            if "://" not in link and not (path.parent / link).exists():
                yield f"{where}: the link {link} leads nowhere"


def documents() -> list[Path]:
    """All documents that people read."""
    found: list[Path] = []
    for name in DOCUMENTS:
        path = ROOT / name
        found += sorted(path.rglob("*.md")) if path.is_dir() else [path]
    return found


def _command(where: str, words: list[str], known: set[str], targets: set[str]) -> Iterator[str]:
    if words[0] == "make":
        yield from (
            f"{where}: no make target {word}"
            for word in words[1:]
            if _WORD.match(word) and word not in targets
        )
        return
    if words[0] not in known:
        if words[0].startswith("tidewaiter"):
            yield f"{where}: there is no program {words[0]}"
        return
    commands: list[str] = []
    text = help_text(words[0])
    for word in words[1:]:
        if word not in subcommands(text):
            break
        commands.append(word)
        text = help_text(words[0], *commands)
    for word in words[1 + len(commands) :]:
        if word.startswith("--") and not re.search(rf"{re.escape(word.split('=')[0])}\b", text):
            yield f"{where}: {word} is no option of `{' '.join([words[0], *commands])}`"


def main() -> int:
    """Print the findings; exit 1 if there are any."""
    found = list(findings())
    for finding in found:
        print(finding, file=sys.stderr)
    print(f"documents against programs: {len(documents())} documents, {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
