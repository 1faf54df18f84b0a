"""Store and forward: nothing final is lost, nothing torn blocks, nothing is sent twice by us."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tidewaiter_agent.errors import OutboxFullError
from tidewaiter_agent.outbox import Outbox, SystemOutboxDisk
from tidewaiter_agent.outbox_item import BUDGETS, Item, ItemClass
from tidewaiter_core.errors import StateError, StateWriteError

FEEDBACK, TELEMETRY = ItemClass.FEEDBACK, ItemClass.TELEMETRY


class PowerCut(BaseException):
    """The process ends here."""


class CuttingDisk(SystemOutboxDisk):
    """Cuts the power before or after the n-th operation."""

    def __init__(self, at: int, *, before: bool) -> None:
        self._left = at
        self._before = before
        self.cut = False

    def _step(self, act: Callable[[], object]) -> object:
        self._left -= 1
        if self._left == 0 and self._before:
            self.cut = True
            raise PowerCut
        result = act()
        if self._left == 0:
            self.cut = True
            raise PowerCut
        return result

    def write(self, fd: int, data: bytes) -> int:
        half = data[: max(1, len(data) // 2)]  # a torn write is the interesting one
        result = self._step(lambda: SystemOutboxDisk.write(self, fd, half))
        assert isinstance(result, int)
        return result

    def sync(self, fd: int) -> None:
        self._step(lambda: SystemOutboxDisk.sync(self, fd))

    def replace(self, source: Path, target: Path) -> None:
        self._step(lambda: SystemOutboxDisk.replace(self, source, target))

    def sync_directory(self, directory: Path) -> None:
        self._step(lambda: SystemOutboxDisk.sync_directory(self, directory))

    def unlink(self, path: Path) -> None:
        self._step(lambda: SystemOutboxDisk.unlink(self, path))


class FullDisk(SystemOutboxDisk):
    def write(self, fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")


def item(
    name: str, *, final: bool = False, group: str = "", kind: ItemClass = FEEDBACK, fill: int = 10
) -> Item:
    rel = "deploymentBase" if kind is FEEDBACK else "tw:telemetry"
    return Item(
        id=name,
        kind=kind,
        rel=rel,
        path_args={"action_id": "7"},
        body={"x": "y" * fill},
        group=group,
        final=final,
    )


def opened(directory: Path, findings: list[tuple[str, str]] | None = None, **options: object) -> Outbox:
    found = [] if findings is None else findings
    return Outbox(directory, on_finding=lambda code, text: found.append((code, text)), **options)  # type: ignore[arg-type]


def ids(outbox: Outbox, kind: ItemClass = FEEDBACK) -> list[str]:
    return [entry.id for _, entry in outbox.head(kind, 10_000)]


def test_items_survive_a_restart_in_their_order(tmp_path: Path) -> None:
    first = opened(tmp_path)
    for name in ("a", "b", "c"):
        first.put(item(name))
    assert ids(opened(tmp_path)) == ["a", "b", "c"]


def test_outbox_that_cannot_be_made_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_bytes(b"a file where the folder belongs")
    with pytest.raises(StateError, match="outbox"):
        opened(tmp_path / "outbox")
    assert (tmp_path / "outbox").read_bytes() == b"a file where the folder belongs"


def test_repeated_put_of_a_waiting_or_delivered_id_is_ignored(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    assert outbox.put(item("7-closed", final=True))
    assert not outbox.put(item("7-closed", final=True))
    outbox.done(FEEDBACK, outbox.head(FEEDBACK)[0][0])
    assert not opened(tmp_path).put(item("7-closed", final=True))


def test_newer_progress_of_one_action_replaces_the_older(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.put(item("7-1", group="progress-7"))
    outbox.put(item("7-2", group="progress-7"))
    outbox.put(item("8-1", group="progress-8"))
    assert ids(opened(tmp_path)) == ["7-2", "8-1"]


def test_torn_item_is_quarantined_and_the_next_goes_on(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.put(item("a"))
    outbox.put(item("b"))
    (tmp_path / "feedback" / f"{1:016d}.json").write_bytes(b'{"schema": 1, "id": "a"')
    findings: list[tuple[str, str]] = []
    again = opened(tmp_path, findings)
    assert ids(again) == ["b"]
    assert again.kept("quarantine") == 1
    assert findings[0][0] == "outbox.torn-item"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff\xfe", b'{"schema":1}', b"null", b'{"schema":true}']
)
def test_foreign_content_never_stops_the_agent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "feedback").mkdir(parents=True)
    (tmp_path / "feedback" / "0000000000000001.json").write_bytes(content)
    (tmp_path / "feedback" / "notes.txt").write_bytes(content)
    outbox = opened(tmp_path)
    assert ids(outbox) == []
    assert outbox.kept("quarantine") == 2


def test_item_of_a_newer_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "feedback" / "0000000000000001.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schema": 2, "id": "future"}))
    outbox = opened(tmp_path)
    assert ids(outbox) == []
    assert path.exists()
    outbox.put(item("a"))
    assert path.read_text().startswith('{"schema": 2')


def test_unreadable_ledger_stops_the_start_and_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text("{")
    with pytest.raises(StateError, match=r"ledger.json"):
        opened(tmp_path)
    assert (tmp_path / "ledger.json").read_text() == "{"


def test_full_budget_drops_the_oldest_that_is_not_final_and_counts_it(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.put(item("closed", final=True))
    for number in range(BUDGETS[FEEDBACK].items):
        outbox.put(item(f"p{number}"))
    assert "closed" in ids(outbox)
    assert "p0" not in ids(outbox)
    assert opened(tmp_path).dropped(FEEDBACK) == 1


def test_byte_budget_is_kept_too(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for number in range(30):
        outbox.put(item(f"p{number}", fill=50_000))
    assert outbox.stats()[FEEDBACK].bytes <= BUDGETS[FEEDBACK].bytes


def test_final_items_are_accepted_beyond_the_budget_and_others_refused(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for number in range(BUDGETS[FEEDBACK].items + 1):
        outbox.put(item(f"c{number}", final=True))
    assert len(ids(outbox)) == BUDGETS[FEEDBACK].items + 1
    with pytest.raises(OutboxFullError, match=r"all of them are final"):
        outbox.put(item("progress"))


def test_item_that_is_too_large_is_refused_with_its_size(tmp_path: Path) -> None:
    with pytest.raises(OutboxFullError, match=r"bytes, the limit is 65536"):
        opened(tmp_path).put(item("big", fill=70_000))


def test_buried_item_is_kept_as_a_dead_letter(tmp_path: Path) -> None:
    findings: list[tuple[str, str]] = []
    outbox = opened(tmp_path, findings)
    outbox.put(item("poison"))
    outbox.put(item("next"))
    outbox.bury(FEEDBACK, 1, "the server answered 400")
    assert ids(opened(tmp_path)) == ["next"]
    assert outbox.kept("dead") == 1
    assert findings == [
        (
            "outbox.dead-letter",
            "feedback poison: the server answered 400; kept in dead/, the next item goes on",
        )
    ]


def test_dead_letters_are_bounded(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for number in range(70):
        outbox.put(item(f"poison{number}"))
        outbox.bury(FEEDBACK, outbox.head(FEEDBACK)[0][0], "400")
    assert outbox.kept("dead") == 64


def test_full_disk_refuses_the_item_and_loses_none_that_waits(tmp_path: Path) -> None:
    opened(tmp_path).put(item("a", final=True))
    outbox = opened(tmp_path, disk=FullDisk())
    with pytest.raises(StateWriteError, match="No space left"):
        outbox.put(item("b", final=True))
    assert ids(outbox) == ["a"]
    assert ids(opened(tmp_path)) == ["a"]


@pytest.mark.parametrize("before", [True, False])
def test_kill_at_every_file_operation_loses_no_closed_feedback(tmp_path: Path, before: bool) -> None:
    """The life of a closed action: put, delivered, put again by a restarted caller. At most one delivery follows an acknowledged
    one.
    """
    cuts = 0
    for at in range(1, 200):
        directory = tmp_path / f"{before}-{at}"
        directory.mkdir()
        disk = CuttingDisk(at, before=before)
        promised = acknowledged = False
        try:
            outbox = opened(directory, disk=disk)
            outbox.put(item("7-progress", group="progress-7"))
            outbox.put(item("7-more", group="progress-7"))
            outbox.put(item("7-closed", final=True))
            promised = True
            for seq, _ in outbox.head(FEEDBACK, 10):
                outbox.done(FEEDBACK, seq)
            acknowledged = True
        except PowerCut:
            cuts += 1
        restarted = opened(directory)
        waiting = ids(restarted)
        assert restarted.kept("quarantine") == 0, f"cut {at}: a torn item was visible"
        if acknowledged:
            assert "7-closed" not in waiting
            assert not restarted.put(item("7-closed", final=True)), f"cut {at}: closed twice"
        elif promised:
            # Either it still waits, or its delivery is remembered: never neither.
            assert "7-closed" in waiting or not restarted.put(item("7-closed", final=True)), f"cut {at}: lost"
        if not disk.cut:
            break
    assert cuts > 20


def test_telemetry_and_feedback_have_their_own_queues(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.put(item("t", kind=TELEMETRY))
    outbox.put(item("f"))
    assert (ids(outbox, TELEMETRY), ids(outbox, FEEDBACK)) == (["t"], ["f"])
