"""What we are measured against: dd, and the installers that Debian has, each set up as its own documentation says."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.storage import Slot

_CPIO_MAGIC: Final = "070702"
_CPIO_END: Final = "TRAILER!!!"
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A program that writes the image into the slot."""

    name: str
    command: tuple[str, ...]
    version: str
    environment: dict[str, str] = field(default_factory=dict)

    def as_text(self, names: dict[str, str]) -> str:
        """The command, with the places of this run under their names."""
        text = " ".join(self.command)
        for place, name in names.items():
            text = text.replace(place, name)
        return text


def dd_write(image: Path, slot: Slot) -> Peer:
    """The uncompressed bytes, and one fsync at the end."""
    flags = "fsync" if slot.path.is_block_device() else "fsync,notrunc"
    command = ("dd", f"if={image}", f"of={slot.path}", "bs=1M", f"conv={flags}")
    return Peer(name="dd", command=command, version=version("dd"))


def dd_read(slot: Slot) -> Peer:
    """Direct reads of the whole slot."""
    command = ("dd", f"if={slot.path}", "of=/dev/null", "bs=1M", "iflag=direct")
    return Peer(name="dd", command=command, version=version("dd"))


def rauc(image: Path, slot: Slot, work: Path) -> Peer:
    """`rauc write-slot`: the uncompressed image into the slot of a system configuration, without a bundle."""
    work.mkdir(parents=True, exist_ok=True)
    link = work / "rootfs.img"  # rauc goes by the name
    link.unlink(missing_ok=True)
    link.symlink_to(image.resolve())
    config = work / "system.conf"
    config.write_text(
        "[system]\ncompatible=tidewaiter-bench\nbootloader=noop\n\n"
        f"[slot.rootfs.0]\ndevice={slot.path}\ntype=raw\nbootname=A\n"
    )
    command = ("rauc", "-c", str(config), "write-slot", "rootfs.0", str(link))
    return Peer(name="rauc write-slot", command=command, version=version("rauc"))


def swupdate(compressed: Path, slot: Slot, work: Path) -> Peer:
    """`swupdate -i`: raw handler, zstd, installed directly; Debian's build wants sw-description signed by CMS."""
    work.mkdir(parents=True, exist_ok=True)
    payload = work / "rootfs.zst"
    payload.unlink(missing_ok=True)
    payload.symlink_to(compressed.resolve())
    digest = _run("sha256sum", str(compressed)).split()[0]
    description = work / "sw-description"
    description.write_text(
        'software =\n{\n  version = "1.0.0";\n  hardware-compatibility: [ "1.0" ];\n  images: (\n    {\n'
        f'      filename = "rootfs.zst";\n      device = "{slot.path}";\n      type = "raw";\n'
        f'      compressed = "zstd";\n      installed-directly = true;\n      sha256 = "{digest}";\n    }}\n  );\n}}\n'
    )
    key, certificate, signature = work / "key.pem", work / "cert.pem", work / "sw-description.sig"
    if not certificate.is_file():
        _run(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate),
            "-days", "30", "-subj", "/CN=bench", "-addext", "keyUsage=digitalSignature",
            "-addext", "extendedKeyUsage=emailProtection",
        )  # fmt: skip
    _run(
        "openssl", "cms", "-sign", "-in", str(description), "-out", str(signature), "-signer", str(certificate),
        "-inkey", str(key), "-outform", "DER", "-nosmimecap", "-binary",
    )  # fmt: skip
    archive = work / "update.swu"
    write_archive(archive, [description, signature, payload])
    command = ("swupdate", "-H", "bench:1.0", "-k", str(certificate), "-i", str(archive))
    # Its sockets have fixed names below TMPDIR.
    return Peer(
        name="swupdate", command=command, version=version("swupdate"), environment={"TMPDIR": str(work)}
    )  # fmt: skip


def missing(*programs: str) -> list[str]:
    """Which of Debian's programs are not here."""
    return [program for program in programs if shutil.which(program) is None]


def write_archive(target: Path, files: list[Path]) -> None:
    """A cpio archive of the format with checksums, which is what an .swu file is."""
    with target.open("wb") as archive:
        for number, file in enumerate(files, 1):
            size, checksum = 0, 0
            with file.open("rb") as source:
                while piece := source.read(_PIECE_BYTES):
                    size, checksum = size + len(piece), (checksum + sum(piece)) & 0xFFFFFFFF
            archive.write(_header(file.name, number=number, size=size, checksum=checksum))
            with file.open("rb") as source:
                shutil.copyfileobj(source, archive, _PIECE_BYTES)
            archive.write(bytes(-size % 4))
        archive.write(_header(_CPIO_END, number=0, size=0, checksum=0))
        archive.write(bytes(-archive.tell() % 512))


def _header(name: str, *, number: int, size: int, checksum: int) -> bytes:
    mode = 0o100644 if number else 0
    fields = (number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name) + 1, checksum)
    data = (_CPIO_MAGIC + "".join(f"{value:08X}" for value in fields) + name + "\0").encode()
    return data + bytes(-len(data) % 4)


def version(program: str, option: str = "--version") -> str:
    """What a program says of itself, and the package of Debian it is from: swupdate says no number but its date of building."""
    said = _said([program, option]) if shutil.which(program) else ""
    own = next((line for line in said.splitlines() if any(letter.isdigit() for letter in line)), "")
    package = _said(["dpkg-query", "--show", "--showformat=${Package} ${Version}", program])
    return ", ".join(filter(None, (own.strip(), f"Debian {package}" if package else ""))) or "unknown"


def _said(command: list[str]) -> str:
    """Its output where it is there and ends well, else nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return (done.stdout or done.stderr).strip() if done.returncode == 0 else ""


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
