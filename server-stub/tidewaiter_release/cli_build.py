"""The command `build` of `tidewaiter-release`: everything a person decides about a release, as options."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tidewaiter_core.payload.components import FileSystem
from tidewaiter_core.payload.limits import U32_MAX
from tidewaiter_core.payload.policy import Activation, Consent, Risk

from tidewaiter_release import cli_values, zstd
from tidewaiter_release.attachments import Firmware
from tidewaiter_release.build import BuildSpec, build
from tidewaiter_release.cli_delta import add_level
from tidewaiter_release.errors import InputError
from tidewaiter_release.payload import DEFAULT_LEVEL


def add_build_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add it to the command line."""
    command = commands.add_parser("build", help="make index, pack and unsigned release.json of an image")
    _add_identity(command)
    _add_policy(command)
    _add_contents(command)
    command.set_defaults(run=_build)


def _add_identity(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("image", metavar="IMAGE", type=Path, help="file-system image of one slot")
    add("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    add("--product", required=True)
    add(
        "--version",
        required=True,
        dest="release_version",
        metavar="VERSION",
        help="for people and paths; never compared",
    )
    add("--sequence", type=int, required=True, help="rises with every release of the product; the only order")
    add("--hw", action="append", required=True, help="hardware id it is for; repeatable")
    add(
        "--built-utc",
        type=cli_values.utc,
        metavar="T",
        help="default: SOURCE_DATE_EPOCH, else the image's own time",
    )
    add(
        "--note",
        action="append",
        type=cli_values.note,
        default=[],
        metavar="LANG=TEXT",
        help="shown before consent; repeatable",
    )
    add("--sbom", type=Path, metavar="FILE", help="software bill of materials, published with the release")
    add(
        "--field",
        action="append",
        type=cli_values.own_field,
        default=[],
        metavar="x_NAME=JSON",
        help="a field of your own, which devices pass over; repeatable",
    )


def _add_policy(command: argparse.ArgumentParser) -> None:
    """Who may install it, when, and what must be well afterwards."""
    add = command.add_argument
    add("--security-epoch", type=int, default=0, help="devices that commit it refuse lower ones from then on")
    add(
        "--consent",
        choices=[str(member) for member in Consent],
        default="none",
        help="whose agreement it needs",
    )
    add("--risk", choices=[str(member) for member in Risk], default="routine")
    add("--tries", type=int, default=3, help="boots before the old slot returns (1..9)")
    add(
        "--activation",
        choices=[str(member) for member in Activation],
        default="any",
        help="whether the reboot waits for a window",
    )
    add(
        "--health-required",
        type=cli_values.names,
        default=(),
        metavar="A,B",
        help="checks that must be green in the trial boot",
    )
    add("--health-deadline-s", type=int, default=600, metavar="N")
    add("--hold-s", type=int, default=30, metavar="N", help="how long they must stay green")
    add("--from-min", type=int, default=0, metavar="N", help="lowest running sequence that may install it")
    add("--from-max", type=int, default=U32_MAX, metavar="N", help="highest one")
    add("--data-writes", type=int, default=1, metavar="N", help="data schema it writes")
    add(
        "--data-reads",
        type=cli_values.schema_range,
        default=(1, 1),
        metavar="MIN-MAX",
        help="data schemas it reads",
    )
    add(
        "--irreversible-data",
        action="store_true",
        help="after commit the older release cannot run on the data",
    )
    add(
        "--max-fetch-bytes",
        type=int,
        metavar="N",
        help="default: index and pack with 5 %% and 1 MiB to spare",
    )
    add(
        "--rollout",
        type=cli_values.percent,
        metavar="PERCENT",
        help="share of the fleet, 0..100; default: everyone",
    )
    add("--rollout-not-before", type=cli_values.utc, metavar="T", help="default: the build time")
    add(
        "--rollout-salt",
        type=cli_values.salt,
        metavar="HEX",
        help="which devices are in the share; default: from the version",
    )


def _add_contents(command: argparse.ArgumentParser) -> None:
    """What is in it, and how it is packed."""
    add = command.add_argument
    add("--fs", choices=[str(member) for member in FileSystem], help="default: as the superblock says")
    add(
        "--level",
        type=int,
        default=DEFAULT_LEVEL,
        choices=range(zstd.LEVEL_MIN, zstd.LEVEL_MAX + 1),
        metavar="1..22",
        help="zstd level",
    )
    add(
        "--uki",
        action="append",
        type=cli_values.uki_file,
        default=[],
        metavar="SLOT=FILE",
        help="unified kernel image that starts slot A or B, for devices with systemd-boot; one for each slot",
    )
    add(
        "--patch-from",
        action="append",
        type=Path,
        default=[],
        metavar="OLD",
        help="also make the patch from this image or build directory; repeatable, up to 16",
    )
    add_level(command, "--patch-level")
    add("--jobs", type=int, metavar="N", help="threads; default one per processor")
    add(
        "--firmware",
        action="append",
        type=cli_values.firmware_file,
        default=[],
        metavar="BOARD=FILE[@VERSION]",
        help="MCUboot image of a board; VERSION is compared with the image's own; repeatable",
    )
    add(
        "--firmware-path",
        action="append",
        type=cli_values.pair,
        default=[],
        metavar="BOARD=PATH",
        help="its place inside the slot image; default: usr/lib/firmware/ and the file's name",
    )
    add(
        "--firmware-compat",
        action="append",
        type=cli_values.firmware_range,
        default=[],
        metavar="BOARD=MIN..MAX",
        help="board versions it works with; default for a board with --firmware: that version only",
    )
    add(
        "--verity",
        type=cli_values.verity,
        metavar="ROOT_HASH:SALT:DATA_BYTES:HASH_OFFSET",
        help="dm-verity inside the image, as `veritysetup format` printed it",
    )


def _build(arguments: argparse.Namespace) -> int:
    built_utc = arguments.built_utc or _default_built_utc(arguments.image)
    spec = BuildSpec(
        product=arguments.product,
        version=arguments.release_version,
        sequence=arguments.sequence,
        hw=tuple(arguments.hw),
        built_utc=built_utc,
        security_epoch=arguments.security_epoch,
        consent=arguments.consent,
        risk=arguments.risk,
        tries=arguments.tries,
        activation=arguments.activation,
        health_required=arguments.health_required,
        health_deadline_s=arguments.health_deadline_s,
        health_hold_s=arguments.hold_s,
        from_min=arguments.from_min,
        from_max=arguments.from_max,
        data_writes=arguments.data_writes,
        data_reads_min=arguments.data_reads[0],
        data_reads_max=arguments.data_reads[1],
        data_reversible=not arguments.irreversible_data,
        max_fetch_bytes=arguments.max_fetch_bytes,
        fs=arguments.fs,
        notes=dict(arguments.note),
        ukis=dict(arguments.uki),
        firmware=_firmware_of(arguments),
        firmware_compat=dict(arguments.firmware_compat),
        sbom=arguments.sbom,
        verity=arguments.verity,
        rollout=_rollout_of(arguments, built_utc),
        extra=dict(arguments.field),
    )
    release = build(
        arguments.image,
        arguments.out,
        spec,
        level=arguments.level,
        patch_from=arguments.patch_from,
        patch_level=arguments.patch_level,
        workers=arguments.jobs,
        stream=sys.stderr,
    )
    sys.stdout.write(
        f"{release.product} {release.version} sequence {release.sequence} digest {release.digest}\n"
    )
    return 0


def _default_built_utc(image: Path) -> datetime:
    """A time that is the same when the build is repeated."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if re.fullmatch(r"[0-9]{1,11}", epoch, re.ASCII):
        return datetime.fromtimestamp(int(epoch), UTC)
    try:
        return datetime.fromtimestamp(int(image.stat().st_mtime), UTC)
    except OSError as err:
        raise InputError(f"{image}: cannot be read: {err}") from err


def _firmware_of(arguments: argparse.Namespace) -> tuple[Firmware, ...]:
    places = dict(arguments.firmware_path)
    boards = {board for board, _, _ in arguments.firmware}
    for board in places.keys() - boards:
        raise InputError(f"--firmware-path {board}: there is no --firmware for this board; nothing was built")
    return tuple(
        Firmware(
            board=board,
            file=file,
            version=version,
            image_path=places.get(board, f"usr/lib/firmware/{file.name}"),
        )
        for board, file, version in arguments.firmware
    )


def _rollout_of(arguments: argparse.Namespace, built_utc: datetime) -> dict[str, Any] | None:
    if arguments.rollout is None:
        if arguments.rollout_not_before or arguments.rollout_salt:
            raise InputError(
                "--rollout-not-before, --rollout-salt: say the share with --rollout; nothing was built"
            )
        return None
    start = arguments.rollout_not_before or built_utc
    # From the version, so that a repeated build is byte-equal and each release meets other devices first.
    text = f"{arguments.product}:{arguments.release_version}"
    return {
        "salt": arguments.rollout_salt or hashlib.sha256(text.encode()).hexdigest()[:32],
        "percent_x100": arguments.rollout,
        "not_before_utc": f"{start.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
