"""The shipped GRUB script in the real GRUB (Debian's grub-emu), on disk images: which slot it decides for, and what it writes.

grub-emu has no `linux` command, so a function of that name tells the decision; everything else is GRUB: the parser, the tests,
load_env, save_env on the blocks of an ext2, the file systems of the slots.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import tidewaiter_updater
from tidewaiter_core.model import SlotName
from tidewaiter_updater.boot.grub import FILES

from tests.sim.loop import tool

SCRIPT = Path(tidewaiter_updater.__file__).parent / "boot_scripts/tidewaiter.grub.cfg"
LIMIT_S = 20.0
_DECISION = re.compile(r"DECISION \(hd([12])\)\S* (\S+) tidewaiter\.slot=([AB])")


@dataclass
class GrubEmu:
    """A machine whose environment blocks are the files of `folder` while it is off."""

    home: Path
    folder: Path

    def __post_init__(self) -> None:
        tool("grub-emu", "grub-emu")
        (self.home / "grub").mkdir(parents=True)
        for slot in SlotName:
            self.install(slot)
        images = (self.home / name for name in ("env.img", "slot-A.img", "slot-B.img"))
        lines = [f"(hd{number}) {image}\n" for number, image in enumerate(images)]
        (self.home / "device.map").write_text("".join(lines))
        settings = "set pager=0\nset tw_env=hd0\nset tw_slot_A=hd1\nset tw_slot_B=hd2\n"
        linux = 'function linux {\n  echo "DECISION $1 $2 $3"\n  halt\n}\n'
        (self.home / "grub/grub.cfg").write_text(f"{settings}{linux}source (host){SCRIPT}\nhalt\n")

    def install(self, slot: SlotName, *, kernel: bytes = b"kernel") -> None:
        """Fill a slot; one whose kernel is empty does not load."""
        root = self.home / f"root-{slot}"
        (root / "boot").mkdir(parents=True, exist_ok=True)
        (root / "boot/vmlinuz").write_bytes(kernel)
        self._format(f"slot-{slot}.img", root)

    def run(self) -> SlotName | None:
        """One power-on; None is a reset."""
        self._format("env.img", self.folder)
        screen = self._emulate()
        for name in FILES:
            self._debugfs(f"dump {name} {self.folder / name}")
        found = _DECISION.search(screen)
        if found is None:
            assert "no slot loads" not in screen, screen
            return None
        disk, root, slot = found.groups()
        assert (disk, root) == ({"A": "1", "B": "2"}[slot], f"root=PARTLABEL=rootfs.{slot}")
        return SlotName(slot)

    def _emulate(self) -> str:
        """What it shows on its terminal, without which it does not start."""
        ours, its = pty.openpty()
        command = [
            tool("grub-emu", "grub-emu"),
            "-m",
            str(self.home / "device.map"),
            "-d",
            str(self.home / "grub"),
            "-r",
            "host",
        ]
        with subprocess.Popen(
            command, stdin=its, stdout=its, stderr=its, env={**os.environ, "TERM": "vt100"}
        ) as process:
            os.close(its)
            screen = b""
            end_s = time.monotonic() + LIMIT_S
            while time.monotonic() < end_s:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # the other end is closed
                    break
                screen += piece
                if not piece or b"no slot loads" in screen:
                    break
            process.kill()
        os.close(ours)
        return screen.decode("latin-1")

    def _format(self, name: str, content: Path) -> None:
        image = self.home / name
        image.unlink(missing_ok=True)
        subprocess.run(
            [tool("mke2fs", "e2fsprogs"), "-q", "-t", "ext2", "-d", str(content), str(image), "1M"],
            check=True,
            capture_output=True,
        )

    def _debugfs(self, request: str) -> None:
        subprocess.run(
            [tool("debugfs", "e2fsprogs"), "-R", request, str(self.home / "env.img")],
            check=True,
            capture_output=True,
        )
