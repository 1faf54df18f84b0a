"""The device's trust code as a client of the public TUF conformance suite."""
