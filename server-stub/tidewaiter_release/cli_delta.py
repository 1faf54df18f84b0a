"""The commands `delta` and `apply` of `tidewaiter-release`: patches on bare files, without any repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tidewaiter_core import heap

from tidewaiter_release import zstd
from tidewaiter_release.apply import apply_patch


def add_delta_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both to the command line."""
    command = commands.add_parser(
        "delta",
        help="make the patch from one image to another",
        description="Makes the patch from OLD.img to NEW.img. An image that ends inside a block of 4096 bytes is taken "
        "with the zeros that fill the block, as in a slot. An older PATCH is replaced once the new one is whole.",
    )
    command.add_argument("old", metavar="OLD.img", type=Path, help="the image that devices have")
    command.add_argument("new", metavar="NEW.img", type=Path, help="the image that they are to have")
    command.add_argument("-o", "--out", required=True, metavar="PATCH", type=Path)
    add_level(command, "--level")
    command.add_argument("--jobs", type=int, metavar="N", help="threads; default one per processor")
    command.set_defaults(run=_delta)

    command = commands.add_parser(
        "apply",
        help="make the new image as a device does, in its memory",
        description="Makes NEW.img from OLD.img and PATCH with the code and memory of a device. An older NEW.img is replaced "
        "once every chunk of the new one is proven.",
    )
    command.add_argument("old", metavar="OLD.img", type=Path)
    command.add_argument("patch", metavar="PATCH", type=Path)
    command.add_argument("-o", "--out", required=True, metavar="NEW.img", type=Path)
    command.set_defaults(run=_apply)


def add_level(command: argparse.ArgumentParser, name: str) -> None:
    """The zstd level of patches."""
    command.add_argument(
        name,
        type=int,
        default=zstd.PUBLISH_LEVEL,
        choices=range(zstd.LEVEL_MIN, zstd.LEVEL_MAX + 1),
        metavar="1..22",
        help="zstd level of the patch: 19 to publish (the default), 12 for drafts",
    )


def _delta(arguments: argparse.Namespace) -> int:
    from tidewaiter_release.delta import make_patch  # numpy costs 25 MiB, which `apply` must not

    built = make_patch(
        arguments.old,
        arguments.new,
        arguments.out,
        level=arguments.level,
        workers=arguments.jobs,
        stream=sys.stderr,
    )
    _say(
        f"{arguments.out}: {built.length} bytes, {built.length * 100 / built.header.new_bytes:.2f} % of the image"
    )
    # A block device has whole blocks, and says that its size is 0.
    added = built.header.new_bytes - arguments.new.stat().st_size if arguments.new.is_file() else 0
    if added > 0:
        _say(
            f"  note      {arguments.new} ends inside a block: apply makes it with {added} zero bytes behind it"
        )
    _say(f"  head      {built.head_bytes} bytes, sha256 {built.head_sha256}")
    _say(
        f"  segments  {built.header.segment_count}, {built.segment_bytes} bytes for {built.literal_bytes} new ones"
    )
    _say(f"  from      {built.header.old_root}")
    _say(f"  to        {built.header.new_root}")
    return 0


def _apply(arguments: argparse.Namespace) -> int:
    heap.return_large_blocks()
    header = apply_patch(arguments.old, arguments.patch, arguments.out, stream=sys.stderr)
    _say(f"{arguments.out}: {header.new_bytes} bytes, sha256 {header.new_sha256}, every chunk proven")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
