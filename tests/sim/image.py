"""Real file-system images of a small device root: what an image builder hands to `tidewaiter-release build`.

The tree holds what the product reads at run time (`/usr/lib/tidewaiter`) and real files of this machine as ballast, packed by
`mke2fs -d` into an ext4 without journal, with fixed identifiers, so that two builds differ only where their files do (and in the
change times of the inodes, which nobody can set).
"""

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_UUID = "6f1c7b1e-52b2-4f5e-9b0e-3d9f1f4f5a01"
_EPOCH = 1790000000
_E2FSPROGS_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


class ImageToolMissingError(RuntimeError):
    """A tool of e2fsprogs is not on this machine."""


def tool(name: str) -> str:
    """Path of an e2fsprogs tool; on Debian they live in /usr/sbin, which a user's PATH often lacks."""
    found = shutil.which(name, path=_E2FSPROGS_PATH)
    if found is None:
        raise ImageToolMissingError(
            f"{name}: not found; install the package e2fsprogs to build file-system images"
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """What one release's root file system contains."""

    version: str
    sequence: int
    hw: str = "inj-a1"
    product: str = "injector"
    security_epoch: int = 1
    built_utc: str = "2026-11-01T00:00:00Z"
    trust_files: Mapping[str, bytes] = field(default_factory=dict)
    """File name under /usr/lib/tidewaiter -> content (root.json, floor.json, server-root.pem)."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Tables of tidewaiter.toml that differ from the default image configuration below."""
    image_bytes: int = 64 << 20
    ballast_bytes: int = 0
    ballast_seed: str = ""
    """A changed seed rewrites a part of the ballast, as a real update does."""
    rewrite_every: int = 10
    """Every n-th ballast file carries the seed; 1 makes a release that shares next to nothing with others."""


def default_settings(spec: ImageSpec) -> dict[str, dict[str, Any]]:
    """The image configuration with the product's own paths; a `Machine` maps them to its directories."""
    return {
        "device": {"product": spec.product, "hw": spec.hw, "model": "Injector A1"},
        "server": {
            "url": "https://localhost:8443",
            "tenant": "default",
            "ca_file": "/usr/lib/tidewaiter/server-root.pem",
        },
        "hal": {
            "driver": "smp-reference",
            "device": "/dev/tidewaiter/injector",
            "driver_allow": [{"name": "smp-reference", "distribution": "tidewaiter"}],
            "bench": True,
            "quiet_after_injection_s": 3,
        },
        "updater": {
            "slot_a": "/dev/disk/by-partlabel/slot-a",
            "slot_b": "/dev/disk/by-partlabel/slot-b",
            "boot_backend": "simulated",
            "boot_env": "/dev/disk/by-partlabel/env",
            "idle_exit_s": 0,
        },
        "poll": {"clamp_min_s": 1, "interval_min_s": 1, "interval_max_s": 5},
        "telemetry": {"interval_s": 5},
    }


def build_image(spec: ImageSpec, target: Path, *, work: Path) -> Path:
    """Write the image of `spec` to `target`; `work` is a scratch directory that is emptied.

    Raises:
        ImageToolMissingError: e2fsprogs is absent.
        subprocess.CalledProcessError: mke2fs refused (usually: the content does not fit `image_bytes`).
    """
    shutil.rmtree(work, ignore_errors=True)
    own = work / "usr/lib/tidewaiter"
    own.mkdir(parents=True)
    settings = default_settings(spec)
    for table, keys in spec.settings.items():
        settings.setdefault(table, {}).update(keys)
    (own / "tidewaiter.toml").write_text(dump_toml(settings))
    identity = {
        "schema": 1,
        "product": spec.product,
        "version": spec.version,
        "sequence": spec.sequence,
        "security_epoch": spec.security_epoch,
        "built_utc": spec.built_utc,
        "hw": [spec.hw],
    }
    (own / "image.json").write_text(json.dumps(identity, indent=1))
    for name, data in spec.trust_files.items():
        (own / name).write_bytes(data)
    (work / "etc").mkdir()
    (work / "etc/os-release").write_text(f'ID=tidewaiter-example\nVERSION_ID="{spec.version}"\n')
    _copy_ballast(spec, work / "usr/share/ballast")
    for path in work.rglob("*"):
        os.utime(path, (_EPOCH, _EPOCH))
    target.unlink(missing_ok=True)
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": str(_EPOCH), "SOURCE_DATE_EPOCH": str(_EPOCH)}
    features = ["-q", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode"]
    identifiers = ["-U", _UUID, "-E", f"hash_seed={_UUID},root_owner=0:0,lazy_itable_init=0"]
    content = ["-d", str(work), str(target), f"{spec.image_bytes >> 10}k"]
    command = [tool("mke2fs"), *features, *identifiers, *content]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    shutil.rmtree(work)
    return target


def read_directory(image: Path, source: str, target: Path) -> None:
    """Extract directory `source` of an ext4 image to `target` without mounting it (debugfs rdump).

    Raises:
        OSError: The image is not a readable ext4 file system or lacks the directory: what a boot loader calls a load failure.
    """
    target.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [tool("debugfs"), "-R", f"rdump {source} {target}", str(image)],
        capture_output=True,
        text=True,
        check=False,
    )
    if not (target / Path(source).name).is_dir():
        raise OSError(
            f"{image.name}: {source} cannot be read from the slot: {done.stderr.strip().splitlines()[-1:]}"
        )


def dump_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """TOML for the value types that our configuration uses (strings, booleans, integers, arrays, inline tables)."""
    lines: list[str] = []
    for table, keys in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{key} = {_toml_value(value)}" for key, value in keys.items()]
        lines.append("")
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml_value(item)}" for key, item in value.items()) + " }"
    return "[" + ", ".join(_toml_value(item) for item in value) + "]"


def _copy_ballast(spec: ImageSpec, target: Path) -> None:
    """Real files (the interpreter's own library) up to the limit; some begin with a line that depends on the seed."""
    target.mkdir(parents=True)
    used = 0
    for number, (name, path) in enumerate(_library_files()):
        size = path.stat().st_size
        if used + size + 4096 > spec.ballast_bytes:
            continue
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        changed = spec.ballast_seed and number % spec.rewrite_every == 0
        head = f"# release {spec.ballast_seed}\n".encode() if changed else b""
        copy.write_bytes(head + path.read_bytes())
        used += size + 4096


def _library_files() -> Iterator[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    for directory, names, files in os.walk(root):
        names[:] = sorted(
            n for n in names if n not in {"site-packages", "__pycache__"} and not n.startswith("config-")
        )
        for name in sorted(files):
            path = Path(directory) / name
            if path.is_file() and not path.is_symlink():
                yield str(path.relative_to(root)), path
