"""The bodies of the management API: strict, nothing unknown, every text bounded."""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from tidewaiter_server import devices
from tidewaiter_server.errors import malformed

_NAME: Final = r"^[a-z0-9][a-z0-9-]{0,31}$"
_VERSION: Final = r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,63}$"
Window = Literal["available", "unavailable"] | None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewDevice(_Body):
    """An entry of the enrollment list; the LDevID certificate names device and key."""

    id: str = Field(pattern=r"^[A-Z0-9][A-Z0-9-]{2,30}$")
    model: str = Field(min_length=1, max_length=64)
    hw: str = Field(min_length=1, max_length=64)
    udi_di: str = Field(default="", max_length=64)
    certificate_pem: str = Field(max_length=16_384)


class Reason(_Body):
    reason: str = Field(min_length=1, max_length=200)


class NewRelease(_Body):
    product: str = Field(pattern=_NAME)
    version: str = Field(pattern=_VERSION)


class NewDeployment(_Body):
    release_id: int = Field(ge=1, lt=2**31)
    device_ids: list[str] = Field(min_length=1, max_length=10_000)
    forced: bool = False
    confirm: bool = False
    window: Window = None


class WindowChange(_Body):
    window: Window


def enrollment(body: NewDevice) -> devices.Enrollment:
    """The entry of a request or an import file; 400 for a certificate that cannot be one of a device."""
    try:
        certificate = devices.read_certificate(body.certificate_pem.encode())
    except ValueError as error:
        raise malformed("certificate_pem", "the PEM of an LDevID certificate", str(error)) from error
    return devices.Enrollment(
        id=body.id, model=body.model, hw=body.hw, udi_di=body.udi_di, certificate=certificate
    )
