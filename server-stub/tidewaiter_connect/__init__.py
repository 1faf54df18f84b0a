"""The support engineer's tool. Empty on purpose until remote sessions exist: they bring its commands."""
