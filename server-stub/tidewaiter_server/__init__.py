"""The reference server: devices poll it over mutual TLS, people and tools manage it on a second listener."""
