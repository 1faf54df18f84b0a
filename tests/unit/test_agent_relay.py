"""What the relay answers for each kind of server answer, judged by headers alone."""

from __future__ import annotations

import pytest
from tidewaiter_agent.relay import Span, is_repository_path, read_span


@pytest.mark.parametrize(
    "path",
    [
        "metadata/timestamp.json",
        "metadata/3.root.json",
        "targets/releases/p/1.0/abc.pack.twpk",
        "targets/a+b_c-d/x",
    ],
)
def test_repository_paths_are_accepted(path: str) -> None:
    assert is_repository_path(path)


@pytest.mark.parametrize(
    "path",
    ["", "metadata", "metadata/", "/metadata/x", "metadata//x", "metadata/../x", "metadata/.x", "metadata/x/./y",
     "releases/x", "targets/x?y", "targets/x#y", "targets/x%2e", "targets/x y", "targets/ü", "targets/" + "x" * 300,
     "targets/x\r\nHost: y", "http://other/metadata/x"],
)  # fmt: skip
def test_any_other_path_is_refused(path: str) -> None:
    assert not is_repository_path(path)


def span(status: int, headers: dict[str, str], *, offset: int = 0, wanted: int = 100) -> Span:
    return read_span(status, headers, offset=offset, wanted=wanted)


def test_partial_answer_is_passed_on_with_the_total() -> None:
    found = span(206, {"content-range": "bytes 50-149/1000", "content-length": "100"}, offset=50)
    assert found == Span(status="ok", offset=50, total=1000, length=100)


def test_short_last_span_is_passed_on() -> None:
    assert span(206, {"content-range": "bytes 50-69/70"}, offset=50).length == 20


def test_unknown_total_is_minus_one() -> None:
    assert span(206, {"content-range": "bytes 0-99/*"}).total == -1


def test_whole_small_file_answers_a_range_from_the_start() -> None:
    assert span(200, {"content-length": "60"}) == Span(status="ok", offset=0, total=60, length=60)


@pytest.mark.parametrize(
    ("status", "headers", "offset"),
    [
        (206, {}, 0),
        (206, {"content-range": "bytes 0-99"}, 0),
        (206, {"content-range": "bytes 1-100/1000"}, 0),
        (206, {"content-range": "bytes 0-100/1000"}, 0),
        (206, {"content-range": "bytes 0-99/50"}, 0),
        (206, {"content-range": "bytes 99-0/1000"}, 99),
        (206, {"content-range": "bytes 0-99/1000", "content-length": "5"}, 0),
        (200, {"content-length": "60"}, 1),
        (200, {"content-length": "101"}, 0),
        (416, {"content-range": "bytes */10"}, 50),
    ],
)
def test_answer_that_does_not_fit_the_question_is_bad_range(
    status: int, headers: dict[str, str], offset: int
) -> None:
    found = span(status, headers, offset=offset)
    assert (found.status, found.length) == ("bad-range", 0)


@pytest.mark.parametrize(
    ("status", "word"),
    [(404, "not-found"), (410, "not-found"), (401, "forbidden"), (403, "forbidden"), (429, "unavailable"),
     (500, "unavailable"), (503, "unavailable"), (504, "too-slow"), (204, "unavailable")],
)  # fmt: skip
def test_each_status_has_a_word_of_the_interface(status: int, word: str) -> None:
    assert span(status, {}).status == word


def test_body_without_a_length_is_not_promised() -> None:
    assert span(200, {}).status == "unavailable"
