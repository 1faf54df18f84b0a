"""The one DER structure no library writes for us: the hardwareModuleName of RFC 4108 (pure).

A fixed-shape encoder is smaller and easier to review than a general ASN.1 library; tests compare it with
`openssl asn1parse` and with the vector of the provisioning design.
"""

_SEQUENCE, _OID, _OCTET_STRING = 0x30, 0x06, 0x04
_SHORT_FORM_LIMIT = 0x80


def _tlv(tag: int, content: bytes) -> bytes:
    if len(content) >= _SHORT_FORM_LIMIT:
        raise ValueError(
            f"DER value of {len(content)} bytes: the short form holds at most {_SHORT_FORM_LIMIT - 1}; not encoded"
        )
    return bytes([tag, len(content)]) + content


def _base128(number: int) -> bytes:
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(0x80 | (number & 0x7F))
    return bytes(reversed(digits))


def object_identifier(dotted: str) -> bytes:
    """The DER of an object identifier such as `1.3.6.1.4.1.32473.1.1`."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    return _tlv(_OID, b"".join(_base128(number) for number in (first * 40 + second, *rest)))


def hardware_module_name(hw_type: str, serial: str) -> bytes:
    """SEQUENCE {hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING}, RFC 4108 section 5."""
    return _tlv(_SEQUENCE, object_identifier(hw_type) + _tlv(_OCTET_STRING, serial.encode("ascii")))
