"""`tidewaiter update install --from DIR` and its neighbors, against an updater whose phases the test sets."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tidewaiter_agent.cli import parser
from tidewaiter_agent.cli_context import Context, Exit
from tidewaiter_agent.errors import MediumError
from tidewaiter_core.varlink import VarlinkError

from tests.sim.clock import FakeClock
from tests.sim.hal import write_config
from tests.sim.updater import DIGEST, Offered, UpdaterWorld, refused

OLD, NEW = "a" * 64, "b" * 64
FOLDER = "releases/contrast-injector"


@dataclass
class Desk:
    """A person at the device with a stick."""

    home: Path
    updater: UpdaterWorld
    stick: Path
    clock: FakeClock = field(default_factory=FakeClock)
    answers: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    is_there: bool = True
    out: io.StringIO = field(default_factory=io.StringIO)

    def run(self, *words: str) -> int:
        arguments = parser().parse_args(["update", *words])
        context = Context(
            self.home / "tidewaiter.toml",
            self.home / "conf.d",
            self.out,
            ask=self._ask,
            has_person=lambda: self.is_there,
            clock=self.clock,
        )
        return int(arguments.run(context, arguments))

    def install(self, *words: str) -> int:
        return self.run("install", "--from", str(self.stick), *words)

    @property
    def said(self) -> str:
        return self.out.getvalue()

    def later(self, *steps: Callable[[], None]) -> None:
        """One step each second."""
        for second, step in enumerate(steps, 1):
            self.clock.call_at(second, step)

    def moves(self, phase: str, *waiting_for: str, done: int = 0) -> Callable[[], None]:
        def move() -> None:
            self.updater.phase, self.updater.waiting_for = phase, list(waiting_for)
            self.updater.done_bytes = done

        return move

    def _ask(self, question: str) -> str:
        self.asked.append(question)
        return self.answers.pop(0)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    write_config(tmp_path / "home", tmp_path / "device")
    (tmp_path / "home/run").mkdir()
    (tmp_path / "home/ca.pem").touch()
    stick = tmp_path / "stick"
    for part in ("metadata", "targets"):
        (stick / "TIDEWAITER" / part).mkdir(parents=True)
    with UpdaterWorld(tmp_path / "home/run/updater-local.sock") as updater:
        updater.releases = {
            f"{FOLDER}/2.1.0/release.json": Offered(digest=OLD),
            f"{FOLDER}/2.2.0/release.json": Offered(digest=NEW, version="2.2.0", sequence=3),
        }
        yield Desk(tmp_path / "home", updater, stick)


def test_the_newest_release_that_can_be_installed_is_installed(desk: Desk) -> None:
    desk.later(desk.moves("STAGED"))
    assert desk.install("--yes") == Exit.OK
    (installed,) = desk.updater.called("Install")
    assert (installed["digest"], installed["source"], installed["medium"]) == (
        NEW,
        f"directory:{desk.stick}",
        0,
    )
    assert "2.2.0 is in slot B, read back and right" in desk.said
    assert "tidewaiter update activate" in desk.said


def test_every_call_about_the_medium_brings_it_as_an_open_directory(desk: Desk) -> None:
    desk.later(desk.moves("STAGED"))
    desk.install("--yes")
    assert desk.updater.media == [str(desk.stick / "TIDEWAITER")] * 4  # list, two checks, install


def test_a_repository_without_the_folder_of_a_stick_serves_too(desk: Desk) -> None:
    desk.later(desk.moves("STAGED"))
    assert desk.run("install", "--from", str(desk.stick / "TIDEWAITER"), "--yes") == Exit.OK


def test_a_person_chooses_a_version(desk: Desk) -> None:
    desk.later(desk.moves("STAGED"))
    assert desk.install("--yes", "--version", "2.1.0") == Exit.OK
    assert [call["digest"] for call in desk.updater.called("Install")] == [OLD]


def test_a_newer_release_that_does_not_fit_is_shown_and_passed_over(desk: Desk) -> None:
    desk.updater.releases[f"{FOLDER}/2.2.0/release.json"].code = "release.hw"
    desk.later(desk.moves("STAGED"))
    assert desk.install("--yes") == Exit.OK
    assert "not for this device now: release.hw" in desk.said
    assert [call["digest"] for call in desk.updater.called("Install")] == [OLD]


def test_a_medium_with_nothing_for_this_device_changes_nothing(desk: Desk) -> None:
    for offered in desk.updater.releases.values():
        offered.code = "release.hw"
    assert desk.install("--yes") == Exit.REFUSED
    assert desk.updater.called("Install") == []
    assert "nothing was changed" in desk.said


def test_a_version_that_is_not_there_is_answered_with_those_that_are(desk: Desk) -> None:
    assert desk.install("--yes", "--version", "7.7.0") == Exit.REFUSED
    assert "2.1.0" in desk.said and "2.2.0" in desk.said
    assert "expected version 7.7.0" in desk.said and desk.updater.called("Install") == []


def test_a_medium_of_another_product_is_not_called_empty(desk: Desk) -> None:
    desk.updater.releases.clear()
    assert desk.run("list", "--from", str(desk.stick)) == Exit.OK
    assert "no release for the product of this device on this medium" in desk.said


def test_the_question_names_the_release_and_says_that_the_running_one_stays(desk: Desk) -> None:
    desk.answers = ["y"]
    desk.later(desk.moves("STAGED"))
    assert desk.install() == Exit.OK
    assert desk.asked == [
        "Install contrast-injector 2.2.0? The running release keeps running until you start the new one. [y/N] "
    ]
    for shown in (NEW, "fixes", "at most 0.0 MiB are read", "slot B"):
        assert shown in desk.said


@pytest.mark.parametrize("answer", ["", "n", "no", "nonsense"])
def test_anything_but_yes_changes_nothing(desk: Desk, answer: str) -> None:
    desk.answers = [answer]
    assert desk.install() == Exit.REFUSED
    assert desk.updater.called("Install") == []


def test_without_a_person_and_without_yes_nothing_is_asked_and_nothing_changed(desk: Desk) -> None:
    desk.is_there = False
    assert desk.install() == Exit.USAGE
    assert (desk.asked, desk.updater.called("Install")) == ([], [])


def test_a_release_that_cannot_be_undone_is_agreed_to_in_those_words(desk: Desk) -> None:
    for offered in desk.updater.releases.values():
        offered.reversible = False
    assert desk.install("--yes") == Exit.USAGE
    assert desk.updater.called("Install") == []
    desk.answers = ["y"]
    desk.later(desk.moves("STAGED"))
    assert desk.install() == Exit.OK
    assert "It cannot be undone: the earlier release cannot read the data" in desk.asked[0]
    assert "can be undone" in desk.said
    assert desk.updater.called("Install")[0]["consent"]["scope"] == ["install", "irreversible"]


def test_without_a_question_the_words_are_a_flag(desk: Desk) -> None:
    for offered in desk.updater.releases.values():
        offered.reversible = False
    desk.later(desk.moves("STAGED"))
    assert desk.install("--yes", "--irreversible") == Exit.OK
    assert desk.updater.called("Install")[0]["consent"]["scope"] == ["install", "irreversible"]


def test_consent_is_for_installing_unless_the_restart_was_agreed_to(desk: Desk) -> None:
    desk.later(desk.moves("STAGED"))
    desk.install("--yes")
    consent = desk.updater.called("Install")[0]["consent"]
    assert (consent["digest"], consent["scope"]) == (NEW, ["install"])
    assert (consent["given_utc"], consent["expires_utc"]) == (
        "2026-11-24T12:00:00.000Z",
        "2026-11-25T12:00:00.000Z",
    )


def test_activate_starts_the_release_and_leaves_when_the_device_goes_down(desk: Desk) -> None:
    desk.later(
        desk.moves("STAGED"),
        desk.moves("WAIT_WINDOW", "update.interlock:armed"),
        desk.moves("ARMED"),
        lambda: desk.updater.__exit__(None, None, None),
    )
    assert desk.install("--yes", "--activate") == Exit.OK
    assert desk.updater.called("Install")[0]["consent"]["scope"] == ["install", "activate"]
    assert desk.updater.called("Activate") == [{"digest": NEW, "window_open": True}]
    assert desk.said.endswith("the device restarts into the new release\n")


def test_an_update_that_fails_says_why_and_what_to_do(desk: Desk) -> None:
    desk.later(lambda: desk.updater.end("FAILED", "slot.medium", "slot B: 3 chunks read back wrong"))
    assert desk.install("--yes") == Exit.WRONG
    assert "slot.medium: slot B: 3 chunks read back wrong" in desk.said
    assert "what to do  call" in desk.said


def test_ctrl_c_leaves_the_update_as_it_is(desk: Desk) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    desk.later(desk.moves("TRANSFER", done=1 << 20), interrupt)
    assert desk.install("--yes") == Exit.UNFINISHED
    assert desk.updater.called("Cancel") == []
    assert "left in phase TRANSFER" in desk.said
    assert "the same command goes on with it" in desk.said


def test_an_update_in_hand_goes_on_from_the_medium(desk: Desk) -> None:
    desk.updater.phase, desk.updater.digest = "TRANSFER", NEW
    desk.updater.waiting_for = ["source.unavailable"]
    desk.later(desk.moves("STAGED"))
    assert desk.install("--yes") == Exit.OK
    assert desk.updater.called("Check") == []
    assert desk.updater.source == f"directory:{desk.stick}"


def test_another_update_in_hand_is_not_touched(desk: Desk) -> None:
    desk.updater.phase, desk.updater.digest = "TRANSFER", NEW
    assert desk.install("--yes", "--version", "2.1.0") == Exit.REFUSED
    assert desk.updater.called("Install") == []
    assert "tidewaiter update cancel" in desk.said


def test_a_release_that_is_installed_already_is_said_to_be(desk: Desk) -> None:
    desk.updater.phase, desk.updater.digest = "STAGED", NEW
    assert desk.install("--yes") == Exit.OK
    assert "installed in slot B already" in desk.said
    assert desk.updater.called("Install") == []


def test_a_stick_that_was_pulled_out_is_given_again_once_it_is_back(desk: Desk, tmp_path: Path) -> None:
    def pull() -> None:
        desk.moves("TRANSFER", "source.vanished")()
        desk.updater.last = ("source.vanished", "the medium was removed", NEW)
        desk.stick.rename(tmp_path / "pocket")

    def put_back() -> None:
        (tmp_path / "pocket").rename(desk.stick)

    desk.later(pull)
    desk.clock.call_at(5, put_back)
    desk.clock.call_at(10, desk.moves("STAGED"))
    assert desk.install("--yes") == Exit.OK
    assert len(desk.updater.called("Install")) >= 2
    assert desk.updater.called("Install")[-1]["consent"] is None
    assert desk.said.count("source.vanished: the medium was removed") == 1


def test_a_medium_that_is_refused_while_it_is_given_again_ends_the_command(desk: Desk) -> None:
    def pull() -> None:
        desk.moves("TRANSFER", "source.vanished")()
        desk.updater.raises["Install"] = refused("release.unknown")

    desk.later(pull)
    with pytest.raises(VarlinkError):
        desk.install("--yes")


@pytest.mark.parametrize("content", ["absent", "empty", "file"])
def test_a_directory_that_is_no_medium_is_refused_in_plain_words(
    desk: Desk, tmp_path: Path, content: str
) -> None:
    place = tmp_path / "place"
    if content == "empty":
        place.mkdir()
    elif content == "file":
        place.touch()
    with pytest.raises(MediumError) as caught:
        desk.run("install", "--from", str(place), "--yes")
    assert str(place) in str(caught.value)
    assert desk.updater.called("List") == []


def test_a_paused_update_goes_on_when_a_person_installs_it(desk: Desk) -> None:
    desk.updater.paused = True
    desk.later(desk.moves("STAGED"))
    desk.install("--yes")
    assert "Resume" in [name for name, _ in desk.updater.calls]


def test_list_shows_each_release_newest_first(desk: Desk) -> None:
    assert desk.run("list", "--from", str(desk.stick)) == Exit.OK
    assert desk.said.splitlines() == [
        "contrast-injector 2.2.0  minor     can be installed",
        "contrast-injector 2.1.0  minor     can be installed",
    ]


def test_documents_for_programs_are_the_updaters_own(desk: Desk) -> None:
    desk.later(desk.moves("STAGED"))
    assert desk.install("--yes", "--json") == Exit.OK
    decoder, text, documents = json.JSONDecoder(), desk.said, []
    while text.strip():
        document, end = decoder.raw_decode(text)
        documents.append(document)
        text = text[end:].lstrip()
    assert [document["phase"] for document in documents] == ["TRANSFER", "STAGED"]
    assert documents[-1] == desk.updater.status()


def test_activate_gives_consent_for_the_restart_and_opens_the_window(desk: Desk) -> None:
    desk.updater.phase, desk.updater.digest = "STAGED", NEW
    desk.answers = ["yes"]
    desk.later(desk.moves("ARMED"), desk.moves("TRIAL"))
    assert desk.run("activate") == Exit.OK
    assert desk.asked[0].startswith("Start contrast-injector 2.2.0: restart the device into it as soon as")
    assert desk.updater.called("Consent")[0]["scope"] == ["install", "activate"]
    assert desk.updater.called("Activate")[0]["window_open"]


def test_activate_without_an_installed_release_does_nothing(desk: Desk) -> None:
    assert desk.run("activate", "--yes") == Exit.REFUSED
    assert desk.updater.called("Activate") == []


def test_cancel_ends_the_update_in_hand(desk: Desk) -> None:
    desk.updater.phase, desk.updater.digest = "TRANSFER", NEW
    assert desk.run("cancel", "--yes") == Exit.OK
    assert desk.updater.called("Cancel") == [{"digest": NEW}]
    assert "canceled; 2.0.0 keeps running from slot A" in desk.said


def test_cancel_that_comes_too_late_says_so_in_words(desk: Desk) -> None:
    desk.updater.phase, desk.updater.digest = "ARMED", NEW
    assert desk.run("cancel", "--yes") == Exit.REFUSED
    assert "too late to cancel, the device is about to switch releases (phase ARMED)" in desk.said
    assert "nothing was changed" in desk.said and "Varlink" not in desk.said


def test_cancel_without_an_update_says_so(desk: Desk) -> None:
    assert desk.run("cancel") == Exit.OK
    assert "no update is in hand" in desk.said
    assert DIGEST not in desk.said
