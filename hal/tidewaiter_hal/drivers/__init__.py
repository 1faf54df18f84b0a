"""The drivers: pure state machines that turn bytes and time into requests and updates."""
