"""Errors of the release tool. Each ends a command with exit status 1, its code on stderr, and nothing published."""

from __future__ import annotations

from tidewaiter_core.errors import TidewaiterError


class ReleaseToolError(TidewaiterError):
    """The command was refused."""

    code = "release-tool.refused"


class InputError(ReleaseToolError):
    """A file given to the tool cannot be used: missing, empty, unreadable, of an unknown kind."""

    code = "release-tool.input"


class BuildMismatchError(ReleaseToolError):
    """The files of a build directory do not belong together; signing them would publish an uninstallable release."""

    code = "release-tool.mismatch"


class KeyFileError(ReleaseToolError):
    """A key file is missing, readable by others, or not the one that the repository names."""

    code = "release-tool.keys"


class ThresholdError(ReleaseToolError):
    """Fewer keys are at hand than the role needs."""

    code = "release-tool.threshold"


class RepositoryError(ReleaseToolError):
    """The repository on disk is incomplete or does not verify; it is never signed on top of."""

    code = "release-tool.repository"


class RepositoryBusyError(ReleaseToolError):
    """Another process is publishing to the same repository."""

    code = "release-tool.busy"
    retryable = True


class PublishedError(ReleaseToolError):
    """The version or the sequence was used before by another release."""

    code = "release-tool.published"


class MediumError(ReleaseToolError):
    """The medium of an export cannot take it: too small, not writable, or in use by somebody else's files."""

    code = "release-tool.medium"


class StaleRequestError(ReleaseToolError):
    """A signing request was made over another state, or another repository, than this one."""

    code = "release-tool.stale"
