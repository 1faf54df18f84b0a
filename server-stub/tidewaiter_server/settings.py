"""`server.toml` -> frozen settings; strict: an unknown key, a wrong type or a value out of range refuses to start."""

import re
import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from tidewaiter_core.errors import ConfigError

_LISTEN = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:]+)\]|(?P<host>[A-Za-z0-9.-]+)):(?P<port>\d{1,5})", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_ORIGIN = re.compile(r"https://[A-Za-z0-9.\-\[\]:]+(?::\{port\})?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every key of server.toml. Secrets are paths, never values."""

    data_dir: Path
    """Database and lock; made by `init` with mode 0700."""
    tls_cert: Path
    tls_key: Path
    device_ca: Path
    """The only CAs whose client certificates the device listener accepts."""
    repository_dir: Path
    """A published TUF repository: `metadata/` and `targets/` below it."""
    tenant: str = "default"
    device_listen: str = "127.0.0.1:8443"
    """Port 0 lets the system choose; the ready line says which."""
    console_listen: str = "127.0.0.1:9443"
    device_url: str = ""
    """Origin that devices reach us at, for links; `{port}` stands for the bound port. Empty: the listen address.
    Never taken from a Host header."""
    poll_sleep_s: int = 300
    config_data_max_age_s: int = 86400
    """After this the base answer asks for the inventory again."""
    identity_recheck_s: int = 30
    """How long a looked-up identity may be reused; a revocation here acts at once, elsewhere within this time."""

    def device_address(self) -> tuple[str, int]:
        return _address(self.device_listen)

    def console_address(self) -> tuple[str, int]:
        return _address(self.console_listen)


_BOUNDS = {
    "poll_sleep_s": (1, 86399),
    "config_data_max_age_s": (60, 30 * 86400),
    "identity_recheck_s": (1, 60),
}
# 86399 s: `sleep` is HH:MM:SS and SWUpdate reads it with %H:%M:%S, so 23:59:59 is the most that can be said.
_PATTERNS = {"tenant": _NAME, "device_listen": _LISTEN, "console_listen": _LISTEN}


def load(path: Path) -> Settings:
    """Read `path`; relative paths in it are relative to its folder.

    Raises:
        ConfigError: Names file, key, value and what was expected.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror or error}); the server does not start"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected TOML, found {error}; the server does not start") from error
    known = {one.name: one for one in fields(Settings)}
    if unknown := sorted(set(document) - set(known)):
        raise ConfigError(
            f"{path}: {unknown[0]} is not a key of this file (known: {', '.join(known)}); the server does not start"
        )
    missing = sorted(name for name, one in known.items() if one.default is MISSING and name not in document)
    if missing:
        raise ConfigError(f"{path}: {missing[0]} is missing; the server does not start")
    kinds = get_type_hints(Settings)
    values = {name: _value(path, name, kinds[name], value) for name, value in document.items()}
    return Settings(**values)


def _value(path: Path, name: str, kind: type, value: object) -> Any:
    wanted = str if kind is Path else kind
    if type(value) is not wanted:
        raise _bad(path, name, value, f"expected {wanted.__name__}")
    if isinstance(value, int):
        low, high = _BOUNDS[name]
        if not low <= value <= high:
            raise _bad(path, name, value, f"expected {low}..{high}")
        return value
    text = str(value)
    if kind is Path:
        if not text:
            raise _bad(path, name, value, "expected a path")
        return path.parent / text
    pattern = _PATTERNS.get(name)
    if pattern and not pattern.fullmatch(text):
        raise _bad(
            path, name, value, "expected HOST:PORT" if pattern is _LISTEN else f"expected {pattern.pattern}"
        )
    if pattern is _LISTEN and _address(text)[1] > 65535:
        raise _bad(path, name, value, "expected a port up to 65535")
    if name == "device_url" and text and not _ORIGIN.fullmatch(text):
        raise _bad(path, name, value, "expected https://HOST[:PORT] without a path")
    return text


def _bad(path: Path, name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{path}: {name} = {value!r}: {expected}; the server does not start")


def _address(listen: str) -> tuple[str, int]:
    match = _LISTEN.fullmatch(listen)
    assert match is not None, listen  # noqa: S101 - load() checked it
    return match["v6"] or match["host"], int(match["port"])
