"""The stories that are cut short at every step (update-engine.md section 17.1).

Each module of stories ends in a tuple; a new one is added to `SCENARIOS`. Not here yet: a firmware step (issue 6).
"""

from __future__ import annotations

from tests.faults.crash_explorer.scenario import Scenario
from tests.faults.crash_explorer.stories import STORIES
from tests.faults.crash_explorer.stories_boot import BOOT_STORIES
from tests.faults.crash_explorer.stories_data import DATA_STORIES

__all__ = ["SCENARIOS", "Scenario"]

SCENARIOS: tuple[Scenario, ...] = (*STORIES, *BOOT_STORIES, *DATA_STORIES)
