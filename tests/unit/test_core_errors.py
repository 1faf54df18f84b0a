"""The root of all errors."""

from __future__ import annotations

from tidewaiter_core.errors import ConfigError, DeadlineError, TidewaiterError


def test_an_error_carries_the_code_of_its_class() -> None:
    assert ConfigError("x").code == "core.config"
    assert not ConfigError("x").retryable


def test_an_instance_may_be_more_precise_than_its_class() -> None:
    error = TidewaiterError("x", code="core.other", retryable=True)
    assert (error.code, error.retryable) == ("core.other", True)
    assert (TidewaiterError.code, TidewaiterError.retryable) == ("core.error", False)


def test_an_instance_may_deny_what_its_class_allows() -> None:
    assert DeadlineError("x").retryable
    assert not DeadlineError("x", retryable=False).retryable


def test_the_message_is_the_text_of_the_error() -> None:
    assert str(ConfigError("a.toml: wrong")) == "a.toml: wrong"
