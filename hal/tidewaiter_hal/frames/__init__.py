"""Framing of the serial protocols: bytes in, frames out, no I/O."""
