"""Programs that keep the repository true: set-up, generated reference pages, README check."""
