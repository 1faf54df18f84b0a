"""`make demo`: the main job on this machine, told as a story of five steps with real processes."""
