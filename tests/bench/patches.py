"""The measurements of patches (`patch_bytes`, `patch_speed`) as results beside the others."""

from __future__ import annotations

from typing import Any, Final

from tests.bench import patch_bytes, patch_speed
from tests.bench.image_pairs import DIRECTORY, PairsMissingError
from tests.bench.result import RSS_BUDGET_BYTES, Budget, Result

_ONE_BYTE_BOUND: Final = 256 << 10


def fetched(*, is_quick: bool) -> Result:
    """Bytes of a patch against other tools, a 1-byte change, an equal image."""
    result = Result(
        name="patch-bytes", title="Bytes fetched for an update of a real root image", bars_unit="MB"
    )
    result.commands = ["python -m tests.bench.image_pairs", "python -m tests.bench.patch_bytes"]
    if is_quick:
        result.skipped.append("everything: --quick")
        return result
    try:
        found = patch_bytes.bench(DIRECTORY)
    except (PairsMissingError, patch_bytes.ToolMissingError) as err:
        result.skipped.append(f"everything: {err}")
        return result
    result.figures = found
    for fs, one in found["pairs"].items():
        _compare(result, fs, one)
    result.budgets += [
        Budget(
            what="fetched for one byte of 1 GiB", value=found["one_byte_of_1_gib"], bound=_ONE_BYTE_BOUND,
            is_minimum=False, unit="bytes",
        ),
        Budget(
            what="fetched for an equal image, beside metadata", value=found["equal_image"], bound=0,
            is_minimum=False, unit="bytes",
        ),
    ]  # fmt: skip
    result.notes.append(
        "Real Debian images: as released, and with its updates. Figures of unchanged images are kept beside them."
    )
    return result


def _compare(result: Result, fs: str, one: dict[str, Any]) -> None:
    result.bars[f"{fs}: tidewaiter"] = round(one["patch_fetched"] / 1e6, 1)
    for name, count in one["others"].items():
        result.bars[f"{fs}: {name}"] = round(count / 1e6, 1)
        result.budgets.append(
            Budget(
                what=f"{fs}: bytes of the patch, of {name}", value=one["ratios_of_patch"][name],
                bound=patch_bytes.BOUNDS[name], is_minimum=False,
            )
        )  # fmt: skip


def applied(*, runs: int, is_quick: bool) -> Result:
    """Seconds of an installation by patch against the same by pack."""
    result = Result(name="patch-speed", title="Installing by patch beside the full install", bars_unit="MB/s")
    result.commands = ["python -m tests.bench.image_pairs", "python -m tests.bench.patch_speed"]
    if is_quick:
        result.skipped.append("everything: --quick")
        return result
    try:
        found = patch_speed.bench(DIRECTORY, runs=runs)
    except PairsMissingError as err:
        result.skipped.append(f"everything: {err}")
        return result
    result.figures = found
    for fs, one in found.items():
        for way in ("patch", "pack"):
            result.bars[f"{fs}: {way}"] = round(one["image_bytes"] / one[way]["seconds"]["median"] / 1e6, 1)
        result.medians[f"{fs}: seconds of patch, of pack"] = one["ratio_seconds"]
        result.medians[f"{fs}: processor seconds of patch, of pack"] = one["ratio_processor_seconds"]
        if one["runs"] > 1:  # one run says nothing about speed
            result.budgets.append(
                Budget(
                    what=f"{fs}: seconds by patch, of by pack", value=one["ratio_seconds"]["median"],
                    bound=patch_speed.SPEED_BUDGET, is_minimum=False,
                )
            )  # fmt: skip
        result.budgets.append(
            Budget(
                what=f"{fs}: peak RSS", value=one["peak_rss_bytes"], bound=RSS_BUDGET_BYTES, is_minimum=False, unit="bytes"
            )
        )  # fmt: skip
    return result
