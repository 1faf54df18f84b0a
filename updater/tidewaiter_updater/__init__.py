"""tidewaiter."""
