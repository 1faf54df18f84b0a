"""`make bench`: speed and memory, measured side by side with a peer in one run; ratios go to out/bench/*.json."""
