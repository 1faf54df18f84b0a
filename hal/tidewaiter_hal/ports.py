"""The serial port: opened and configured with pyserial, owned exclusively, then used as a plain descriptor.

The only module that imports serial. Every trap listed in hal-and-hil.md 4.2 ends here in one error: `PortLostError`.
pyserial's own read, write and flush are never called: they use select() (no descriptor above 1023) and can hang.
"""

import errno
import fcntl
import os
import select
import stat
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import serial

from tidewaiter_hal.errors import PortAbsentError, PortBusyError, PortLostError
from tidewaiter_hal.injector import LineSettings, PortInfo

T = TypeVar("T")

READ_BYTES: Final = 4096
_BUSY: Final = frozenset({errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK})
_GONE: Final = frozenset({errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ELOOP})
_LFLAG, _CFLAG = 3, 2


class Port(Protocol):
    """An open line to the injector."""

    def fileno(self) -> int: ...
    def read(self) -> bytes:
        """What has arrived, b"" if nothing. Raises PortLostError."""

    def write(self, data: bytes) -> None:
        """Hand over what fits now; the rest is dropped, its request times out. Raises PortLostError."""

    def discard(self) -> None:
        """Drop both queues of the kernel. Raises PortLostError."""

    def close(self) -> None: ...


class PortOpener(Protocol):
    """Where ports come from."""

    def open(self) -> Port:
        """Raises PortAbsentError, PortBusyError, PortLostError."""

    def marker(self) -> object:
        """Changes when the node appears or is replaced; None while it is absent."""


class SerialPort:
    """See `Port`."""

    def __init__(self, device: "serial.Serial", path: Path) -> None:
        self._device = device  # keeps the descriptor alive: its destructor closes it
        self._path = path
        self._fd: int = device.fileno()

    def fileno(self) -> int:
        """The descriptor, for poll()."""
        return self._fd

    def read(self) -> bytes:
        """See `Port.read`."""

        def read() -> bytes:
            try:
                data = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                return b""
            # With VMIN = 0 an idle line reads as b"" too: only together with a hang-up it is the end.
            if not data and self._hung_up():
                raise PortLostError(
                    f"{self._path}: end of file: the line hung up; it is opened again when it is back"
                )
            return data

        return self._guarded(read)

    def write(self, data: bytes) -> None:
        """See `Port.write`."""

        def write() -> None:
            try:
                os.write(self._fd, data)
            except BlockingIOError:
                return  # a stuck peer: the request will time out and the link go down

        self._guarded(write)

    def discard(self) -> None:
        """See `Port.discard`."""
        self._guarded(lambda: termios.tcflush(self._fd, termios.TCIOFLUSH))

    def close(self) -> None:
        """Give the node back at once: held open, it would come back under another number."""
        try:
            self._device.close()
        except (serial.SerialException, OSError, termios.error, TypeError, ValueError):
            return  # it is gone either way

    def _hung_up(self) -> bool:
        poller = select.poll()
        poller.register(self._fd, 0)
        return bool(poller.poll(0))

    def _guarded(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except (serial.SerialException, OSError, termios.error, TypeError, ValueError) as err:
            raise PortLostError(
                f"{self._path}: {err}; the line is lost and opened again when it is back"
            ) from err


class SerialOpener:
    """Opens the configured node as its single owner."""

    def __init__(self, path: Path, line: LineSettings, *, node_must_be_private: bool) -> None:
        self._path = path
        self._line = line
        self._node_must_be_private = node_must_be_private

    def marker(self) -> object:
        """Device number and identity of the node behind the stable name."""
        try:
            info = self._path.stat()
        except OSError:
            return None
        return info.st_rdev, info.st_ino, info.st_ctime_ns

    def open(self) -> SerialPort:
        """Open, lock and configure.

        Raises:
            PortAbsentError: There is no such node.
            PortBusyError: Another process owns it, or could.
            PortLostError: It failed while it was being configured.
        """
        self._check_node()
        device = serial.Serial()
        device.port = str(self._path)
        device.baudrate = self._line.baud
        device.bytesize = self._line.data_bits
        device.parity = self._line.parity
        device.stopbits = self._line.stop_bits
        device.timeout = 0
        device.write_timeout = 0
        device.xonxoff = device.rtscts = device.dsrdtr = False
        device.exclusive = True  # flock
        try:
            device.open()
        except (serial.SerialException, OSError, termios.error, ValueError) as err:
            raise self._open_error(err) from err
        try:
            # flock is advisory and TIOCEXCL does not stop root: both, and a private node.
            fcntl.ioctl(device.fileno(), termios.TIOCEXCL)
            self._keep_modem_lines(device.fileno())
        except (OSError, termios.error) as err:
            device.close()
            raise PortLostError(
                f"{self._path}: cannot be configured: {err}; the next attempt follows"
            ) from err
        return SerialPort(device, self._path)

    def _check_node(self) -> None:
        try:
            info = self._path.stat()
        except OSError as err:
            raise PortAbsentError(
                f"{self._path}: no such device node ({err.strerror}); waiting for it"
            ) from err
        if not stat.S_ISCHR(info.st_mode):
            raise PortAbsentError(
                f"{self._path}: a terminal device was expected, this is none; waiting for one"
            )
        private = info.st_uid == os.geteuid() and not info.st_mode & 0o077
        if self._node_must_be_private and not private:
            raise PortBusyError(
                f"{self._path}: owner uid {os.geteuid()} and mode 0600 were expected, found uid {info.st_uid} and "
                f"mode {stat.S_IMODE(info.st_mode):04o}; not opened, because others could write to the injector"
            )

    def _open_error(self, err: Exception) -> PortAbsentError | PortBusyError | PortLostError:
        number = getattr(err, "errno", None)
        if number is None and isinstance(err.__context__, OSError):
            number = err.__context__.errno
        if number in _BUSY:
            return PortBusyError(
                f"{self._path}: another process owns the port ({err}); the next attempt follows"
            )
        if number in _GONE:
            return PortAbsentError(f"{self._path}: no device behind the node ({err}); waiting for it")
        return PortLostError(f"{self._path}: cannot be opened: {err}; the next attempt follows")

    @staticmethod
    def _keep_modem_lines(fd: int) -> None:
        """Clear HUPCL: our restart must not drop DTR, which may be wired to something."""
        attributes = termios.tcgetattr(fd)
        attributes[_CFLAG] &= ~termios.HUPCL
        termios.tcsetattr(fd, termios.TCSANOW, attributes)


def port_info(path: Path) -> PortInfo:
    """What sysfs says about a node; no byte is sent."""
    node = path.resolve().name
    base = Path("/sys/class/tty") / node / "device"
    kernel_driver = (base / "driver").resolve().name if (base / "driver").exists() else None
    usb = base.resolve().parent if base.exists() else None

    def read(name: str, number_base: int | None = None) -> Any:
        for folder in (usb, usb.parent if usb else None):
            if folder is not None and (folder / name).is_file():
                text = (folder / name).read_text("ascii", errors="replace").strip()
                return int(text, number_base) if number_base else text
        return None

    return PortInfo(
        path=str(path),
        vendor_id=read("idVendor", 16),
        product_id=read("idProduct", 16),
        serial=read("serial"),
        kernel_driver=kernel_driver,
    )
