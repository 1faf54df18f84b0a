"""The chunk size rule and the range checks that every parser shares."""

from __future__ import annotations

import ast
import inspect
import pkgutil
from importlib import import_module

import pytest
import tidewaiter_core.payload
from hypothesis import given
from hypothesis import strategies as st
from tidewaiter_core.payload import STANDARD, PayloadLimitError
from tidewaiter_core.payload.limits import chunk_count, end_of

GIB = 1024**3


@pytest.mark.parametrize(
    ("image_bytes", "chunk_bytes"),
    [
        (4096, 64 * 1024),
        (16 * GIB, 64 * 1024),
        (16 * GIB + 4096, 128 * 1024),
        (32 * GIB, 128 * 1024),
        (32 * GIB + 4096, 256 * 1024),
        (128 * GIB, 512 * 1024),
        (128 * GIB + 4096, 1024 * 1024),
        (256 * GIB, 1024 * 1024),
    ],
)
def test_chunk_count_limit_grows_the_chunk(image_bytes: int, chunk_bytes: int) -> None:
    assert STANDARD.chunk_bytes_for(image_bytes) == chunk_bytes


@given(st.integers(1, 256 * GIB // 4096))
def test_every_legal_image_has_at_most_262144_chunks(blocks: int) -> None:
    assert chunk_count(blocks * 4096, STANDARD.chunk_bytes_for(blocks * 4096)) <= 262_144


@pytest.mark.parametrize("image_bytes", [-4096, 0, 1, 4095, 4097, 256 * GIB + 4096, 2**64])
def test_an_image_size_that_no_slot_holds_is_refused(image_bytes: int) -> None:
    with pytest.raises(PayloadLimitError, match="image_bytes"):
        STANDARD.check_image_bytes(image_bytes, what="image")


def test_padding_fills_the_last_block_only() -> None:
    assert [STANDARD.padded(size) for size in (1, 4096, 4097)] == [4096, 4096, 8192]


@pytest.mark.parametrize(("offset", "length"), [(2**64 - 1, 2), (2**63, 2**63), (-1, 1), (0, -1), (90, 11)])
def test_a_span_that_leaves_its_file_or_u64_is_refused(offset: int, length: int) -> None:
    with pytest.raises(PayloadLimitError):
        end_of(offset, length, limit=100, what="unit")


def test_u64_itself_is_a_limit_even_if_the_caller_allows_more() -> None:
    with pytest.raises(PayloadLimitError):
        end_of(2**64 - 1, 1, limit=2**80, what="unit")


def test_the_package_imports_nothing_that_does_input_or_output() -> None:
    forbidden = {"socket", "subprocess", "threading", "os", "pathlib", "time", "io", "tempfile"}
    for module in pkgutil.iter_modules(tidewaiter_core.payload.__path__, "tidewaiter_core.payload."):
        tree = ast.parse(inspect.getsource(import_module(module.name)))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not forbidden & {name.partition(".")[0] for name in names}, module.name
