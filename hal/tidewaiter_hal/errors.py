"""What can go wrong in the HAL, one class per different reaction of a caller (hal-and-hil.md 14.1).

A bad frame is not among them: damaged input is counted by kind and never raised.
"""

from collections.abc import Sequence

from tidewaiter_core.errors import TidewaiterError


class HalError(TidewaiterError):
    """Root of the HAL family."""

    code = "hal.error"


class PortAbsentError(HalError):
    """The device node does not exist: unplugged, or udev has not named it yet."""

    code = "hal.port-absent"
    retryable = True


class PortLostError(HalError):
    """The open port failed: hang-up, end of file or an I/O error."""

    code = "hal.port-lost"
    retryable = True


class PortBusyError(HalError):
    """Another process owns the port."""

    code = "hal.port-busy"
    retryable = True


class NoDriverError(HalError):
    """No driver of that name is installed, or none matches the port."""

    code = "hal.no-driver"


class DriverNotAllowedError(HalError):
    """A driver is installed but the image's allow-list does not name it with this distribution."""

    code = "hal.driver-not-allowed"


class DriverTableError(HalError):
    """A driver's command table is incomplete or contradicts itself: the driver must not run."""

    code = "hal.driver-table"


class GateRefusedError(HalError):
    """A driver asked for a frame that its table does not allow. A programming error: the frame is dropped."""

    code = "hal.gate-refused"


class LinkDownError(HalError):
    """The injector does not answer now."""

    code = "hal.link-down"
    retryable = True


class QueueFullError(HalError):
    """Sixteen questions already wait for the line; the caller is refused instead of blocked."""

    code = "hal.busy"
    retryable = True


class UnknownReadingError(HalError):
    """A value was required but its quality says that nobody knows it."""

    code = "hal.unknown-reading"

    def __init__(self, name: str, quality: str) -> None:
        super().__init__(f"{name}: a known value was required, its quality is {quality}; nothing was assumed")
        self.name = name
        self.quality = quality


class NotSupportedError(HalError):
    """This injector or driver does not offer the function."""

    code = "hal.unsupported"


class BadCursorError(HalError):
    """A cursor belongs to another injector or to a log that was formatted since."""

    code = "hal.bad-cursor"


class DeniedError(HalError):
    """The interlock says no; `reasons` are the codes of hal-and-hil.md 6.1."""

    code = "hal.denied"
    retryable = True

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__(
            f"interlock: allow was expected, denied for {', '.join(reasons)}; nothing was locked"
        )
        self.reasons = tuple(reasons)


class LeaseLostError(HalError):
    """The inhibit lease ended although it was still wanted."""

    code = "hal.lease-lost"
    retryable = True


class LeaseBusyError(HalError):
    """Another lease is held or being acquired."""

    code = "hal.lease-busy"
    retryable = True
