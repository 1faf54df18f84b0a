"""Read the configuration strictly: image file, then the site's files in lexical order.

Invariants:
1. A key that is unknown, of the wrong type, out of bounds, missing or not this file's to set stops the process;
   nothing is ignored and nothing is reset to a default.
2. The message names file, key, value and bound. The value of an unknown key is not shown: it may be a secret.
3. A site file only sets site keys.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_type_hints

from tidewaiter_core.errors import ConfigError
from tidewaiter_core.keys import MISSING, Key, Scope, describe
from tidewaiter_core.log import redact
from tidewaiter_core.settings import Settings
from tidewaiter_core.values import ValueProblem, convert, show

DEFAULT_IMAGE_FILE: Final = Path("/usr/lib/tidewaiter/tidewaiter.toml")
DEFAULT_CONF_DIR: Final = Path("/etc/tidewaiter/conf.d")
EXIT_CONFIG: Final = 78
"""EX_CONFIG of sysexits.h."""
FILE_LIMIT_BYTES: Final = 1024 * 1024
BUILT_IN: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRow:
    """One key, as `tidewaiter config explain` prints it."""

    key: str
    value: str
    """In TOML notation."""
    source: str
    """The file that set it, or `default`."""
    scope: Scope
    doc: str


@dataclass(frozen=True, slots=True)
class _Entry:
    """One declared key with what the files said about it."""

    key: Key
    kind: Any
    value: Any
    source: str


@dataclass(slots=True)
class _Sheet:
    """All keys while the files are read; keyed by `section.name`."""

    entries: dict[str, _Entry]
    sections: dict[str, type[Any]] = field(default_factory=dict)


def load(image_file: Path = DEFAULT_IMAGE_FILE, conf_dir: Path = DEFAULT_CONF_DIR) -> Settings:
    """The configuration of this device.

    Raises:
        ConfigError: Anything at all is wrong; the process must not start.
    """
    return _settings(_read(image_file, conf_dir), image_file)


def explain(image_file: Path = DEFAULT_IMAGE_FILE, conf_dir: Path = DEFAULT_CONF_DIR) -> list[ExplainRow]:
    """Every key with its value and where that comes from.

    Raises:
        ConfigError: As `load`: a configuration that does not load cannot be explained.
    """
    sheet = _read(image_file, conf_dir)
    _settings(sheet, image_file)
    return [
        ExplainRow(key=name, value=show(e.value), source=e.source, scope=e.key.scope, doc=e.key.doc)
        for name, e in sheet.entries.items()
    ]


def _read(image_file: Path, conf_dir: Path) -> _Sheet:
    sheet = _empty_sheet()
    _apply(sheet, image_file, scope=Scope.IMAGE)
    for file in _site_files(conf_dir):
        _apply(sheet, file, scope=Scope.SITE)
    return sheet


def _empty_sheet() -> _Sheet:
    sheet = _Sheet({}, get_type_hints(Settings))
    for section, cls in sheet.sections.items():
        kinds = get_type_hints(cls)
        for declared in dataclasses.fields(cls):
            key = describe(declared)
            sheet.entries[f"{section}.{declared.name}"] = _Entry(
                key, kinds[declared.name], key.default, BUILT_IN
            )
    return sheet


def _site_files(conf_dir: Path) -> list[Path]:
    try:
        # Names with a dot in front are what editors leave behind.
        return sorted(p for p in conf_dir.iterdir() if p.suffix == ".toml" and not p.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as err:
        raise ConfigError(
            f"{conf_dir}: the folder of site files cannot be read ({err.strerror or err})"
        ) from err


def _apply(sheet: _Sheet, file: Path, *, scope: Scope) -> None:
    for section, table in _parse(file).items():
        if section not in sheet.sections:
            raise ConfigError(
                f"{file}: {_quoted(section)} is no section of this program; known are {_known(sheet)}"
            )
        if not isinstance(table, dict):
            raise ConfigError(f"{file}: {section} is expected to be a table [{section}]")
        for name, value in table.items():
            _set(sheet, file, key=f"{section}.{name}", value=value, scope=scope)


def _known(sheet: _Sheet) -> str:
    return ", ".join(sheet.sections)


def _quoted(name: str) -> str:
    return show(name[:80])


def _parse(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(FILE_LIMIT_BYTES + 1)
    except FileNotFoundError as err:
        raise ConfigError(f"{file}: there is no such file; the process does not start without it") from err
    except OSError as err:
        raise ConfigError(f"{file}: cannot be read ({err.strerror or err})") from err
    if len(data) > FILE_LIMIT_BYTES:
        raise ConfigError(f"{file}: is longer than {FILE_LIMIT_BYTES} bytes")
    if data.startswith(b"\xef\xbb\xbf"):
        raise ConfigError(f"{file}: starts with a byte order mark; save it as UTF-8 without one")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as err:
        raise ConfigError(f"{file}: byte {err.start} is not UTF-8") from err
    except (tomllib.TOMLDecodeError, RecursionError) as err:
        # Covers a key or table that is given twice.
        raise ConfigError(f"{file}: is not valid TOML: {redact(str(err))}") from err


def _set(sheet: _Sheet, file: Path, *, key: str, value: Any, scope: Scope) -> None:
    entry = sheet.entries.get(key)
    if entry is None:
        section, _, name = key.partition(".")
        near = _nearest(sheet, section, name)
        hint = f"; did you mean {near}" if near else ""
        raise ConfigError(f"{file}: {section}.{_bare(name)} is no key of this program{hint}")
    shown = f"{file}: {key} = {redact(show(value))}"
    if scope is Scope.SITE and entry.key.scope is Scope.IMAGE:
        raise ConfigError(f"{shown} can only be set by the signed image, not by a site file; remove it")
    try:
        converted = convert(value, entry.kind, entry.key)
    except ValueProblem as problem:
        raise ConfigError(f"{shown} {problem}") from problem
    if scope is Scope.SITE and entry.key.only_restricts and converted and not entry.value:
        raise ConfigError(
            f"{shown} is refused: {entry.source} switched it off, a site file can only switch it off, not on"
        )
    sheet.entries[key] = _Entry(entry.key, entry.kind, converted, str(file))


def _bare(name: str) -> str:
    return name if name.replace("_", "a").isalnum() and name.isascii() and len(name) <= 80 else _quoted(name)


def _nearest(sheet: _Sheet, section: str, name: str) -> str | None:
    import difflib  # only needed on the way out

    known = [key for key in sheet.entries if key.startswith(f"{section}.")]
    found = difflib.get_close_matches(f"{section}.{name[:80]}", known, n=1)
    return found[0] if found else None


def _settings(sheet: _Sheet, image_file: Path) -> Settings:
    values: dict[str, dict[str, Any]] = {section: {} for section in sheet.sections}
    for key, entry in sheet.entries.items():
        if entry.value is MISSING:
            raise ConfigError(f"{image_file}: {key} is not set; set it, for example {key} = {entry.key.hint}")
        section, _, name = key.partition(".")
        values[section][name] = entry.value
    settings = Settings(**{section: cls(**values[section]) for section, cls in sheet.sections.items()})
    for message in _violations(sheet, settings):
        raise ConfigError(message)
    return settings


def _violations(sheet: _Sheet, settings: Settings) -> Iterator[str]:
    for violation in settings.violations():
        entry = sheet.entries[violation.key]
        yield f"{entry.source}: {violation.key} = {redact(show(entry.value))} {violation.text}"
