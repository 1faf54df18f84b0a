"""stage, sign, publish: three machines, thresholds of distinct keys, and a repository that is old or new, never between."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from securesystemslib.signer import Key
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.payload import Release
from tidewaiter_release.errors import (
    InputError,
    KeyFileError,
    PublishedError,
    StaleRequestError,
    ThresholdError,
)
from tidewaiter_release.repository import Desk, Store, edits, lint
from tidewaiter_release.repository.adopt import Adopted, adopt
from tidewaiter_release.repository.changes import summary
from tidewaiter_release.repository.founding import stage_first
from tidewaiter_release.repository.keys import load_signer, make_key, write_public
from tidewaiter_release.repository.request import Request, read_request
from tidewaiter_release.repository.roles import ROLES, Side
from tidewaiter_release.repository.sign import read_signatures, sign, signature_files
from tidewaiter_release.repository.signing import Calendar
from tidewaiter_release.repository.stage import Change, stage
from tuf.api.metadata import Metadata, Root

from tests.sim.repository import MadeRelease, TestRepository
from tests.sim.tuf_client import TufDevice

IMAGE = bytes(range(256)) * 1024
RELEASE_DESK = (
    "os-1",
    "os-3",
    "media-snapshot-1",
    "media-snapshot-2",
    "media-timestamp-2",
    "media-timestamp-3",
)


class Ceremony:
    """A repository whose keys lie with people, its release desk, and the online signer."""

    def __init__(self, directory: Path) -> None:
        self.world = TestRepository(directory / "world")
        self.desk_folder = directory / "desk"
        self.desk_folder.mkdir()
        self.online = directory / "online"
        self.online.mkdir(mode=0o700)
        for name in ("snapshot-1", "timestamp-1"):
            shutil.copy2(self.world.keys / f"{name}.pem", self.online / f"{name}.pem")
        self.store = self.world.store
        self._requests = 0

    def stage(self, change: Change, *, media: bool = True) -> Path:
        self._requests += 1
        out = self.desk_folder / f"request-{self._requests}"
        stage(self.store, out, change, calendar=Calendar(clock=SystemClock()), media=media)
        return out

    def key(self, name: str) -> Path:
        return self.world.keys / f"{name}.pem"

    def sign(self, folder: Path, *names: str) -> None:
        sign(read_request(folder), folder, [load_signer(self.key(name)) for name in names])

    def publish(self, folder: Path, *builds: Path, store: Store | None = None) -> Adopted:
        request = read_request(folder)
        signatures = [one for path in signature_files(folder) for one in read_signatures(path, request)]
        desk = Desk(keys=self.online, clock=SystemClock())
        return adopt(store or self.store, desk, request, signatures, builds=builds)

    def device(self, name: str = "device") -> TufDevice:
        root = self.store.metadata / "1.root.json"
        return TufDevice(self.world.directory / name, repository=self.world.repo, root=root)

    def stick(self, name: str = "stick") -> TufDevice:
        root = self.store.media.metadata / "1.root.json"
        served = self.world.directory / f"{name}-served"
        served.mkdir()
        (served / "metadata").symlink_to(self.store.media.metadata)
        (served / "targets").symlink_to(self.store.targets)
        return TufDevice(self.world.directory / name, repository=served, root=root)

    def made(self, version: str = "1.0", sequence: int = 1, image: bytes = IMAGE) -> MadeRelease:
        return self.world.make_release(image, version, sequence)

    def findings(self) -> list[str]:
        return [str(finding) for finding in lint(self.store, clock=SystemClock())]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys and an empty repository, made once: 33 keys cost more than a test."""
    directory = tmp_path_factory.mktemp("template")
    TestRepository(directory / "world")
    return directory


@pytest.fixture
def ceremony(tmp_path: Path, template: Path) -> Ceremony:
    shutil.copytree(template / "world", tmp_path / "world")
    return Ceremony(tmp_path)


def test_a_release_signed_by_people_on_other_machines_reaches_devices_and_sticks(ceremony: Ceremony) -> None:
    made = ceremony.made()
    folder = ceremony.stage(edits.release(made.directory))
    ceremony.sign(folder, "os-1", "media-snapshot-1", "media-timestamp-2")
    ceremony.sign(folder, "os-3", "media-snapshot-2", "media-timestamp-3")
    done = ceremony.publish(folder, made.directory)
    assert done.items == ("os-2", "media-snapshot-2", "media-timestamp-2")
    assert made.path in done.targets
    assert Release.parse(ceremony.device().fetch(made.path)).digest == made.digest
    assert ceremony.stick().fetch(made.release.slot.pack.path)
    assert ceremony.findings() == []


def contents(ceremony: Ceremony) -> dict[Path, bytes]:
    """Every file of the repository but the lock."""
    found = (path for path in ceremony.world.repo.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in found}


def test_staging_publishes_nothing(ceremony: Ceremony) -> None:
    before = contents(ceremony)
    ceremony.stage(edits.release(ceremony.made().directory))
    assert contents(ceremony) == before


def test_the_summary_says_product_version_sequence_and_every_digest(ceremony: Ceremony) -> None:
    made = ceremony.made()
    folder = ceremony.stage(edits.release(made.directory))
    text = (folder / "summary.txt").read_text()
    for words in (
        "os version 2 (now 1), expires 20",
        "needs 2 of: os-1 (",
        f"+ {made.path} ",
        f"sha256 {made.digest}",
        f"release {ceremony.world.product} 1.0",
        "sequence      1",
        made.release.slot.pack.sha256,
        "media-snapshot version 2 (now 1)",
        "  os.json version 2 (was 1)",
    ):
        assert words in text
    assert "!" not in text


def test_what_is_shown_is_what_the_canonical_bytes_say_not_what_the_request_says(ceremony: Ceremony) -> None:
    folder = ceremony.stage(edits.release(ceremony.made().directory))
    (folder / "summary.txt").write_text("all is well")
    assert any("release.json" in line for line in summary(read_request(folder)))


@pytest.mark.parametrize("name", ["sign/os-2.json", "present/os-2.json", "request.json", "files/*"])
def test_a_changed_request_is_not_signed(ceremony: Ceremony, name: str) -> None:
    folder = ceremony.stage(edits.release(ceremony.made().directory))
    path = next(folder.glob(name))
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    with pytest.raises(InputError):
        read_request(folder)


@pytest.mark.parametrize(
    ("side", "role"), [("media", "os"), ("online", "timestamp"), ("media", "targets"), ("online", "nobody")]
)
def test_an_item_that_no_request_has_is_refused(ceremony: Ceremony, side: str, role: str) -> None:
    folder = ceremony.stage(edits.renew(["os"]), media=False)
    document = json.loads((folder / "request.json").read_bytes())
    document["items"][0] |= {"side": side, "role": role}
    (folder / "request.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="which no request asks people to sign"):
        read_request(folder)


def test_a_place_where_no_signature_can_be_written_is_named(ceremony: Ceremony, tmp_path: Path) -> None:
    folder = ceremony.stage(edits.renew(["os"]), media=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="no folder for signatures can be made"):
        sign(read_request(folder), folder, [load_signer(ceremony.key("os-1"))], out=tmp_path / "file")


def test_bytes_that_are_not_canonical_are_not_signed(ceremony: Ceremony) -> None:
    folder = ceremony.stage(edits.release(ceremony.made().directory))
    data = json.dumps(json.loads((folder / "sign/os-2.json").read_bytes())).encode()
    (folder / "sign/os-2.json").write_bytes(data)
    document = json.loads((folder / "request.json").read_bytes())
    document["items"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "request.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="os-2: not in canonical form"):
        read_request(folder)


def test_one_signature_less_than_the_threshold_is_refused_and_says_who_is_missing(ceremony: Ceremony) -> None:
    made = ceremony.made()
    folder = ceremony.stage(edits.release(made.directory), media=False)
    ceremony.sign(folder, "os-2")
    with pytest.raises(
        ThresholdError, match=r"os-2: 1 of 2 signatures, 1 more of os-1 \(.*, os-3 \(.* has to sign"
    ):
        ceremony.publish(folder, made.directory)
    assert ceremony.device().session().get_targetinfo(made.path) is None


def test_the_same_key_twice_counts_once(ceremony: Ceremony) -> None:
    made = ceremony.made()
    folder = ceremony.stage(edits.release(made.directory), media=False)
    ceremony.sign(folder, "os-2")
    first = signature_files(folder)[0]
    shutil.copy2(first, first.with_name("again.json"))
    with pytest.raises(ThresholdError, match="1 of 2 signatures"):
        ceremony.publish(folder, made.directory)


def test_a_key_of_another_role_signs_nothing(ceremony: Ceremony) -> None:
    folder = ceremony.stage(edits.release(ceremony.made().directory), media=False)
    with pytest.raises(KeyFileError, match="signs nothing in this request, which asks for os"):
        ceremony.sign(folder, "injector-firmware-1")


def test_keys_named_by_the_request_instead_of_the_repository_do_not_count(
    ceremony: Ceremony, tmp_path: Path
) -> None:
    made = ceremony.made()
    folder = ceremony.stage(edits.release(made.directory), media=False)
    intruders = [make_key(tmp_path / f"intruder-{number}.pem") for number in (1, 2)]
    document = json.loads((folder / "request.json").read_bytes())
    document["items"][0]["keys"] = {key.keyid: "os-1" for key in intruders}
    (folder / "request.json").write_text(json.dumps(document))
    sign(
        read_request(folder), folder, [load_signer(tmp_path / f"intruder-{number}.pem") for number in (1, 2)]
    )
    with pytest.raises(ThresholdError, match="0 of 2 signatures"):
        ceremony.publish(folder, made.directory)


def test_a_damaged_signature_is_refused_by_name(ceremony: Ceremony) -> None:
    made = ceremony.made()
    folder = ceremony.stage(edits.release(made.directory), media=False)
    ceremony.sign(folder, "os-1", "os-2")
    path = signature_files(folder)[0]
    document = json.loads(path.read_bytes())
    sig = document["signatures"][0]["sig"]
    document["signatures"][0]["sig"] = ("0" if sig[0] != "0" else "1") + sig[1:]
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"os-2: the signature of os-[12] \(.* over other bytes or damaged"):
        ceremony.publish(folder, made.directory)


def test_signatures_of_another_request_are_not_used(ceremony: Ceremony) -> None:
    first = ceremony.stage(edits.release(ceremony.made().directory), media=False)
    second = ceremony.stage(edits.renew(["os"]), media=False)
    ceremony.sign(first, "os-1")
    with pytest.raises(InputError, match="signs the request"):
        read_signatures(signature_files(first)[0], read_request(second))


def test_publishing_twice_is_the_same_as_once(ceremony: Ceremony) -> None:
    made = ceremony.made()
    folder = ceremony.stage(edits.release(made.directory))
    ceremony.sign(folder, *RELEASE_DESK)
    ceremony.publish(folder, made.directory)
    before = contents(ceremony)
    assert ceremony.publish(folder, made.directory).items == ()
    assert contents(ceremony) == before


def test_a_request_that_the_repository_has_overtaken_is_refused(ceremony: Ceremony) -> None:
    made = ceremony.made()
    folder = ceremony.stage(edits.release(made.directory))
    ceremony.world.add_release(IMAGE + b"x", "0.9", 1)
    ceremony.sign(folder, *RELEASE_DESK)
    with pytest.raises(StaleRequestError, match="holds os version 2 and has moved on"):
        ceremony.publish(folder, made.directory)


def test_a_refresh_in_between_does_not_hurt(ceremony: Ceremony) -> None:
    made = ceremony.made()
    folder = ceremony.stage(edits.release(made.directory))
    ceremony.world.refresh()
    ceremony.sign(folder, *RELEASE_DESK)
    assert ceremony.publish(folder, made.directory).items
    assert ceremony.findings() == []


def test_a_media_snapshot_that_was_overtaken_is_refused_before_anything_is_published(
    ceremony: Ceremony,
) -> None:
    made = ceremony.made()
    folder = ceremony.stage(edits.release(made.directory))
    for path in ceremony.world.keys.glob("media-*"):
        path.rename(path.with_suffix(".away"))
    ceremony.world.add_target("injector-firmware", "firmware/head/1.0.0/head.bin", b"x")
    for path in ceremony.world.keys.glob("*.away"):
        path.rename(path.with_suffix(".pem"))
    ceremony.sign(folder, *RELEASE_DESK)
    with pytest.raises(StaleRequestError, match="other roles were published since"):
        ceremony.publish(folder, made.directory)
    assert ceremony.device().session().get_targetinfo(made.path) is None


def test_a_request_of_another_repository_is_refused(ceremony: Ceremony, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    other = Ceremony(tmp_path / "second")
    folder = other.stage(edits.release(other.made().directory), media=False)
    other.sign(folder, "os-1", "os-2")
    with pytest.raises(StaleRequestError, match="the request is for the repository"):
        ceremony.publish(folder)


def test_the_files_of_a_build_are_needed_when_it_is_published(ceremony: Ceremony) -> None:
    made = ceremony.made()
    folder = ceremony.stage(edits.release(made.directory), media=False)
    ceremony.sign(folder, "os-1", "os-2")
    with pytest.raises(
        InputError, match=r"index.twci: its file is neither in the request nor in a build directory"
    ):
        ceremony.publish(folder)
    (made.directory / "pack.twpk").write_bytes(b"other")
    with pytest.raises(InputError, match="nothing was published"):
        ceremony.publish(folder, made.directory)
    assert ceremony.device().session().get_targetinfo(made.path) is None


def test_a_build_that_is_published_already_is_not_staged(ceremony: Ceremony) -> None:
    made = ceremony.world.add_release(IMAGE, "1.0", 1)
    with pytest.raises(PublishedError, match="nothing to sign"):
        ceremony.stage(edits.release(made.directory))


def test_a_request_folder_is_never_written_over(ceremony: Ceremony) -> None:
    (ceremony.desk_folder / "request-1").mkdir()
    with pytest.raises(InputError, match="exists; a signing request is never changed"):
        ceremony.stage(edits.renew(["os"]))


# -- permits, authority files, renewal --------------------------------------------------------------------------------


def permit(**changes: object) -> Change:
    fields: dict[str, object] = {
        "from_version": "1.1",
        "to_version": "1.0",
        "serials": ["SN-2", "SN-1"],
        "not_after_utc": SystemClock().now_utc() + timedelta(days=30),
        "reason": "1.1 leaks memory at site 4711",
        **changes,
    }
    return edits.permit("contrast-injector", **fields)  # type: ignore[arg-type]


def test_a_permit_is_signed_by_targets_and_names_both_releases(ceremony: Ceremony) -> None:
    old = ceremony.world.add_release(IMAGE, "1.0", 1)
    new = ceremony.world.add_release(IMAGE + b"x", "1.1", 2)
    folder = ceremony.stage(permit())
    assert "1.1 leaks memory" in (folder / "summary.txt").read_text()
    ceremony.sign(folder, "targets-1", "targets-2", *RELEASE_DESK[2:])
    ceremony.publish(folder)
    path = f"permits/{ceremony.world.product}/{old.digest[:16]}.json"
    document = json.loads(ceremony.device().fetch(path))
    assert (document["from_digest"], document["to_digest"]) == (new.digest, old.digest)
    assert document["serials"] == ["SN-1", "SN-2"] and document["format"] == 1
    assert ceremony.findings() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"to_version": "9"}, "is not published"),
        ({"from_version": "1.0", "to_version": "1.1"}, "is no way back"),
        ({"reason": " "}, "a reason of 1 to 256 characters"),
        ({"serials": []}, "1 to 10000 serial numbers"),
    ],
)
def test_a_permit_that_makes_no_sense_is_refused(
    ceremony: Ceremony, changes: dict[str, object], words: str
) -> None:
    ceremony.world.add_release(IMAGE, "1.0", 1)
    ceremony.world.add_release(IMAGE + b"x", "1.1", 2)
    with pytest.raises(InputError, match=words):
        ceremony.stage(permit(**changes))


def test_a_permit_below_the_security_epoch_is_refused(ceremony: Ceremony) -> None:
    ceremony.world.add_release(IMAGE, "1.0", 1)
    ceremony.world.add_release(IMAGE + b"x", "1.1", 2, security_epoch=1)
    with pytest.raises(InputError, match="no device goes below its epoch"):
        ceremony.stage(permit())


def support_file(directory: Path, **changes: object) -> Path:
    later = f"{SystemClock().now_utc() + timedelta(days=60):%Y-%m-%dT%H:%M:%SZ}"
    key = {"keyid": "a", "scheme": "ed25519", "public": "00", "not_after": later, "allow": {"tenants": []}}
    document = {"schema": 1, "expires": later, "threshold": 1, "keys": [key], "diagnostics_recipient": "x"}
    path = directory / "support.json"
    path.write_text(json.dumps({**document, **changes}))
    return path


def documents(target: str, path: Path) -> Change:
    return edits.documents({target: path}, now_utc=SystemClock().now_utc())


def test_the_support_authority_is_published_and_replaced(ceremony: Ceremony, tmp_path: Path) -> None:
    target = "authorities/support.json"
    for threshold in (1, 2):
        keys = [{**json.loads(support_file(tmp_path).read_text())["keys"][0], "keyid": name} for name in "ab"]
        path = support_file(tmp_path, threshold=threshold, keys=keys)
        folder = ceremony.stage(documents(target, path))
        ceremony.sign(folder, "support-authority-1", "support-authority-2", *RELEASE_DESK[2:])
        ceremony.publish(folder)
        assert json.loads(ceremony.device(f"device-{threshold}").fetch(target))["threshold"] == threshold
    assert f"! ~ {target} replaces the present one" in (folder / "summary.txt").read_text()
    assert [text for text in ceremony.findings() if "no target" not in text] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"expires": "2020-01-01T00:00:00Z"},
        {"expires": "2099-01-01T00:00:00Z"},
        {"threshold": 2},
        {"keys": []},
        {"schema": 2},
    ],
)
def test_a_support_authority_that_devices_refuse_is_not_staged(
    ceremony: Ceremony, tmp_path: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(InputError, match="not staged"):
        ceremony.stage(documents("authorities/support.json", support_file(tmp_path, **changes)))


@pytest.mark.parametrize("target", ["releases/a/1/x", "firmware/a/1/x", "permits/a/b", "elsewhere"])
def test_only_authority_and_trust_files_are_staged_as_files(
    ceremony: Ceremony, tmp_path: Path, target: str
) -> None:
    with pytest.raises(InputError, match="only authority and trust files"):
        ceremony.stage(documents(target, support_file(tmp_path)))


def test_a_role_is_renewed_before_it_expires(ceremony: Ceremony) -> None:
    folder = ceremony.stage(edits.renew(["os", "trust-anchors"]))
    ceremony.sign(folder, "os-1", "os-2", "trust-anchors-1", "trust-anchors-2", *RELEASE_DESK[2:])
    assert ceremony.publish(folder).items[:2] == ("os-2", "trust-anchors-2")
    assert ceremony.findings() == []


def test_the_online_roles_are_not_renewed_by_a_request(ceremony: Ceremony) -> None:
    with pytest.raises(InputError, match="is renewed by `refresh`"):
        ceremony.stage(edits.renew(["timestamp"]))


# -- keys -------------------------------------------------------------------------------------------------------------


def new_key(ceremony: Ceremony, name: str) -> Path:
    """A key that somebody made; returns its public half."""
    key: Key = make_key(ceremony.key(name))
    public = ceremony.world.directory / f"{name}.pub.pem"
    write_public(key, public)
    return public


def replace(ceremony: Ceremony, role: str, old: str, new: str) -> Change:
    return edits.keys([edits.Replacement(role=role, old=old, new=new_key(ceremony, new))])


MEDIA_DESK = RELEASE_DESK[2:]


def test_a_root_key_is_replaced_by_the_old_threshold_and_the_new(ceremony: Ceremony) -> None:
    device = ceremony.device()
    device.session()
    folder = ceremony.stage(replace(ceremony, "root", "root-5", "root-6"))
    assert "!   + key root-6" in (folder / "summary.txt").read_text()
    ceremony.sign(folder, "root-4", "root-5", "root-6")
    with pytest.raises(ThresholdError, match=r"root-2: 2 of 3 signatures, 1 more of root-1"):
        ceremony.publish(folder)
    ceremony.sign(folder, "root-1")
    assert ceremony.publish(folder).items == ("root-2",)
    device.session()
    ceremony.device("new").session()
    root: Metadata[Root] = Metadata.from_bytes((ceremony.store.metadata / "2.root.json").read_bytes())
    assert len(root.signed.roles["root"].keyids) == 5 and root.signed.version == 2
    assert ceremony.findings() == []


@pytest.mark.parametrize(
    ("role", "signers"),
    [
        ("media-root", ("media-root-2", "media-root-3", "media-root-4")),
        ("media-timestamp", ("media-root-1", "media-root-2", "media-root-3")),
        ("os", ("targets-1", "targets-3", "os-2", "os-3")),
        (
            "targets",
            ("targets-2", "targets-3", *(f"{side}root-{n}" for side in ("", "media-") for n in (1, 2, 3))),
        ),
    ],
)
def test_any_key_is_replaced_and_old_and_new_devices_follow(
    ceremony: Ceremony, role: str, signers: Sequence[str]
) -> None:
    made = ceremony.world.add_release(IMAGE, "1.0", 1)
    device, stick = ceremony.device(), ceremony.stick()
    device.session()
    stick.session()
    folder = ceremony.stage(replace(ceremony, role, f"{role}-1", f"{role}-new"))
    ceremony.sign(folder, *signers, *MEDIA_DESK)
    ceremony.publish(folder)
    for one in (device, stick, ceremony.device("later"), ceremony.stick("later-stick")):
        assert one.fetch(made.path)
    assert ceremony.findings() == []


def test_a_replaced_timestamp_key_is_used_at_once(ceremony: Ceremony) -> None:
    device = ceremony.device()
    device.session()
    folder = ceremony.stage(replace(ceremony, "timestamp", "timestamp-1", "timestamp-2"))
    ceremony.sign(folder, "root-1", "root-2", "root-3")
    with pytest.raises(ThresholdError, match="0 of the 1 keys of role timestamp found"):
        ceremony.publish(folder)
    shutil.copy2(ceremony.key("timestamp-2"), ceremony.online / "timestamp-2.pem")
    ceremony.publish(folder)
    device.session()


def test_a_revoked_key_does_not_sign_the_next_release(ceremony: Ceremony) -> None:
    folder = ceremony.stage(replace(ceremony, "os", "os-1", "os-new"))
    ceremony.sign(folder, "targets-1", "targets-2", "os-new", "os-2", *MEDIA_DESK)
    ceremony.publish(folder)
    folder = ceremony.stage(edits.release(ceremony.made().directory))
    with pytest.raises(KeyFileError, match="signs nothing"):
        ceremony.sign(folder, "os-1")


def test_a_key_that_is_in_use_is_not_taken_for_another_role(ceremony: Ceremony, tmp_path: Path) -> None:
    write_public(load_signer(ceremony.key("os-1")).public_key, tmp_path / "again.pub.pem")
    change = edits.keys([edits.Replacement(role="root", old="root-1", new=tmp_path / "again.pub.pem")])
    with pytest.raises(InputError, match="is in use already, as os-1"):
        ceremony.stage(change)


def test_an_unknown_old_key_is_refused_with_the_known_ones(ceremony: Ceremony) -> None:
    with pytest.raises(InputError, match=r"0 of its keys are called 'anna'; they are os-1 \("):
        ceremony.stage(replace(ceremony, "os", "anna", "os-new"))


# -- cuts -------------------------------------------------------------------------------------------------------------


class CutStore(Store):
    """Kills its process before the n-th step on the disk."""

    def __init__(self, directory: Path, *, after: int, side: Side = Side.ONLINE) -> None:
        super().__init__(directory, side=side)
        self.left = [after]

    @property
    def media(self) -> Store:
        other = CutStore(self.directory, after=0, side=Side.MEDIA)
        other.left = self.left
        return other

    def _step(self) -> None:
        if self.left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left[0] -= 1

    def write(self, directory: Path, name: str, data: bytes) -> None:
        self._step()
        super().write(directory, name, data)

    def swap(self, draft: Path) -> bool:
        self._step()
        swapped = super().swap(draft)
        self._step()
        return swapped


def killed(act: Callable[[], object]) -> bool:
    """Run something in a child process; True if it was killed, False if it came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:
            os._exit(2)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def cut_everywhere(ceremony: Ceremony, folder: Path, *builds: Path) -> Iterator[int]:
    """Publish, each time from the same old state, killed before each step in turn; yields the number of cuts so far."""
    copy = ceremony.world.keep_copy("before-the-cuts")
    for after in itertools.count():
        ceremony.world.rollback_to(copy)
        store = CutStore(ceremony.world.repo, after=after)
        if not killed(partial(ceremony.publish, folder, *builds, store=store)):
            return
        yield after + 1


def test_kill_9_in_any_step_of_a_root_rotation_leaves_the_old_state_or_the_new(ceremony: Ceremony) -> None:
    made = ceremony.world.add_release(IMAGE, "1.0", 1)
    folder = ceremony.stage(replace(ceremony, "timestamp", "timestamp-1", "timestamp-2"))
    ceremony.sign(folder, "root-1", "root-2", "root-3")
    shutil.copy2(ceremony.key("timestamp-2"), ceremony.online / "timestamp-2.pem")
    cuts = 0
    for cuts in cut_everywhere(ceremony, folder):
        assert ceremony.device(f"cut-{cuts}").fetch(made.path)
        ceremony.store.load()
        ceremony.publish(folder)
    assert cuts >= 4
    assert ceremony.device("last").fetch(made.path) and ceremony.findings() == []


def test_kill_9_in_any_step_of_a_release_leaves_both_sides_whole(ceremony: Ceremony) -> None:
    old = ceremony.world.add_release(IMAGE, "1.0", 1)
    made = ceremony.made("1.1", 2, IMAGE + b"x")
    folder = ceremony.stage(edits.release(made.directory))
    ceremony.sign(folder, *RELEASE_DESK)
    cuts = 0
    for cuts in cut_everywhere(ceremony, folder, made.directory):
        for seen in (ceremony.device(f"cut-{cuts}"), ceremony.stick(f"stick-{cuts}")):
            assert seen.fetch(old.path)
            assert seen.session().get_targetinfo(made.path) is None or seen.fetch(made.path)
        ceremony.publish(folder, made.directory)
        assert ceremony.stick(f"after-{cuts}").fetch(made.path)
    assert cuts >= 12
    assert ceremony.device("last").fetch(made.path)
    assert ceremony.findings() == [] and not list(ceremony.world.repo.rglob("*.next"))


def test_a_file_system_without_exchange_is_written_in_order(ceremony: Ceremony) -> None:
    class Plain(Store):
        def swap(self, draft: Path) -> bool:
            return False

    made = ceremony.made()
    folder = ceremony.stage(edits.release(made.directory), media=False)
    ceremony.sign(folder, "os-1", "os-2")
    ceremony.publish(folder, made.directory, store=Plain(ceremony.world.repo))
    assert ceremony.device().fetch(made.path)


# -- keys as people keep them -----------------------------------------------------------------------------------------


def test_an_encrypted_key_signs_with_its_passphrase_only(tmp_path: Path) -> None:
    key = make_key(tmp_path / "anna.pem", passphrase=b"correct horse")
    assert b"ENCRYPTED" in (tmp_path / "anna.pem").read_bytes()
    signer = load_signer(tmp_path / "anna.pem", passphrase=lambda path: b"correct horse")
    key.verify_signature(signer.sign(b"data"), b"data")
    with pytest.raises(KeyFileError, match="or not its passphrase"):
        load_signer(tmp_path / "anna.pem", passphrase=lambda path: b"wrong")
    with pytest.raises(KeyFileError, match="asks for no passphrase"):
        load_signer(tmp_path / "anna.pem")


def test_a_request_is_read_back_as_it_was_written(ceremony: Ceremony) -> None:
    folder = ceremony.stage(edits.release(ceremony.made().directory))
    request: Request = read_request(folder)
    assert [item.name for item in request.items] == ["os-2", "media-snapshot-2", "media-timestamp-2"]
    assert request == read_request(folder)


def test_the_tool_that_signs_needs_no_repository(ceremony: Ceremony, tmp_path: Path) -> None:
    folder = ceremony.stage(edits.release(ceremony.made().directory), media=False)
    offline = tmp_path / "offline"
    shutil.copytree(folder, offline)
    shutil.rmtree(ceremony.world.repo)
    run = "import sys; from tidewaiter_release.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", run, "sign", str(offline), "--key", str(ceremony.key("os-1"))]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 1
    done = subprocess.run([*command, "--yes"], capture_output=True, text=True, check=True)
    assert "release contrast-injector 1.0" in done.stdout and "signed os-2 by os-1" in done.stdout
    assert len(signature_files(offline)) == 1


# -- a repository whose keys never met --------------------------------------------------------------------------------


class People:
    """Everyone made a key of their own; the folder holds the public halves."""

    def __init__(self, directory: Path) -> None:
        """Make the keys, or use those of a copy."""
        self.secret, self.public = directory / "secret", directory / "public"
        if directory.exists():
            return
        for folder in (self.secret, self.public):
            folder.mkdir(parents=True)
        for spec in ROLES.values():
            for number in range(1, spec.keys + 1):
                name = f"{spec.name}-{number}"
                write_public(make_key(self.secret / f"{name}.pem"), self.public / f"{name}.pub.pem")

    def sign(self, folder: Path, *, leave_out: Sequence[str] = ()) -> None:
        """The threshold of every role signs."""
        names = [
            f"{spec.name}-{number}"
            for spec in ROLES.values()
            if spec.name not in ("snapshot", "timestamp")
            for number in range(1, spec.threshold + 1)
        ]
        signers = [load_signer(self.secret / f"{name}.pem") for name in names if name not in leave_out]
        sign(read_request(folder), folder, signers)

    def publish(self, folder: Path, repo: Path) -> Adopted:
        request = read_request(folder)
        signatures = [one for path in signature_files(folder) for one in read_signatures(path, request)]
        return adopt(Store(repo), Desk(keys=self.secret, clock=SystemClock()), request, signatures)


@pytest.fixture(scope="module")
def people_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("people")
    People(directory / "people")
    return directory / "people"


@pytest.fixture
def people(tmp_path: Path, people_template: Path) -> People:
    shutil.copytree(people_template, tmp_path / "people")
    return People(tmp_path / "people")


def first(people: People, folder: Path) -> Path:
    stage_first(people.public, folder, calendar=Calendar(clock=SystemClock()))
    return folder


def test_a_repository_is_founded_by_people_whose_keys_never_met(people: People, tmp_path: Path) -> None:
    folder = first(people, tmp_path / "request")
    people.sign(folder)
    done = people.publish(folder, tmp_path / "repo")
    assert "root-1" in done.items and "media-root-1" in done.items
    assert lint(Store(tmp_path / "repo"), clock=SystemClock()) == []
    root = tmp_path / "repo/metadata/1.root.json"
    TufDevice(tmp_path / "device", repository=tmp_path / "repo", root=root).session()
    media = tmp_path / "repo/media/metadata/1.root.json"
    TufDevice(tmp_path / "stick", repository=tmp_path / "repo/media", root=media).session()


def test_founding_twice_is_the_same_as_once(people: People, tmp_path: Path) -> None:
    folder = first(people, tmp_path / "request")
    people.sign(folder)
    people.publish(folder, tmp_path / "repo")
    before = (tmp_path / "repo/metadata/timestamp.json").read_bytes()
    assert people.publish(folder, tmp_path / "repo").items == ()
    assert (tmp_path / "repo/metadata/timestamp.json").read_bytes() == before


@pytest.mark.parametrize("name", ["root-2", "media-root-1", "targets-1", "os-2", "media-snapshot-1"])
def test_a_repository_is_not_founded_with_one_signature_less(
    people: People, tmp_path: Path, name: str
) -> None:
    folder = first(people, tmp_path / "request")
    people.sign(folder, leave_out=[name])
    with pytest.raises(ThresholdError, match=f"{name.rpartition('-')[0]}-1: "):
        people.publish(folder, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


def test_a_missing_public_key_is_named(people: People, tmp_path: Path) -> None:
    (people.public / "root-5.pub.pem").unlink()
    with pytest.raises(KeyFileError, match=r"4 public keys called root-\*\.pub\.pem, the role has 5"):
        first(people, tmp_path / "request")


def test_one_key_under_two_names_is_refused(people: People, tmp_path: Path) -> None:
    shutil.copy2(people.public / "root-1.pub.pem", people.public / "media-root-1.pub.pem")
    with pytest.raises(KeyFileError, match="one stolen key would count twice"):
        first(people, tmp_path / "request")


def test_an_offered_request_never_founds_over_a_repository(
    ceremony: Ceremony, people: People, tmp_path: Path
) -> None:
    folder = first(people, tmp_path / "request")
    people.sign(folder)
    before = contents(ceremony)
    with pytest.raises(StaleRequestError):
        people.publish(folder, ceremony.world.repo)
    assert contents(ceremony) == before
