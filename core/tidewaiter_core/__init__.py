"""What every tidewaiter process shares: standard library and sdnotify only."""

__version__ = "0.1.0"
