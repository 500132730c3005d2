"""The text of a join token: ``hansa-`` and, in the URL-safe alphabet of base 64, a key and two certificates.

======  ===================================================================================
1 byte  version of the form, 1
32      the private key, a number of P-256, its highest byte first
...     deflated, with a dictionary: 2 bytes with the length of the bootstrap certificate, then it, then the authority's, both DER
4       CRC-32 of all before, which finds every change of up to 32 bits in a row; the highest byte first
======  ===================================================================================

The checksum is against slips of hands and mail programs. Against forgery the certificates are signed.
"""

from __future__ import annotations

import base64
import binascii
import zlib

from hansa.core.errors import InputError

PREFIX = "hansa-"
_VERSION = 1
_KEY = 32
_MOST_TEXT = 8_192
_MOST_DER = 8_192
# What the certificates of all tokens have in common: an authority's and a bootstrap certificate, without their keys, names and
# signatures. Deflating with it makes a token a third shorter. It belongs to the form: other words here need another version.
_COMMON = bytes.fromhex(
    "3082016230820109a0030201020214300a06082a8648ce3d040302300e310c300a060355040a0c03301e170d3236303030305a170d3336303030305a"
    "300e310c300a060355040a0c033059301306072a8648ce3d020106082a8648ce3d03010703420004a345304330120603551d130101ff040830060101"
    "ff020100300e0603551d0f0101ff040403020106301d0603551d0e04160414300a06082a8648ce3d0403020347003082018f30820134a00302010202"
    "14300a06082a8648ce3d040302300e310c300a060355040a0c03301e170d3236303030305a170d3236303030305a302831173015060355040b0c0e6a"
    "6f696e696e673a636c69656e74310d300b06035504030c043059301306072a8648ce3d020106082a8648ce3d03010703420004a3563054300c060355"
    "1d130101ff04023000300e0603551d0f0101ff04040302078030130603551d25040c300a06082b06010505070302301f0603551d2304183016801430"
    "0a06082a8648ce3d040302034900"
)


def pack(key: bytes, certificate: bytes, authority: bytes) -> str:
    """The token's text. key: 32 bytes; certificate, authority: DER."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _COMMON)
    packed = deflate.compress(len(certificate).to_bytes(2, "big") + certificate + authority) + deflate.flush()
    content = bytes([_VERSION]) + key + packed
    content += zlib.crc32(content).to_bytes(4, "big")
    return PREFIX + base64.urlsafe_b64encode(content).decode().rstrip("=")


def unpack(text: str) -> tuple[bytes, bytes, bytes]:
    """What :func:`pack` was given. Blanks and line breaks within the text do not matter. InputError where it is damaged."""
    if len(text) > 2 * _MOST_TEXT:
        raise _damaged(f"it has {len(text):,} characters, and no token has more than {_MOST_TEXT:,}")
    text = "".join(text.split())
    if not text.startswith(PREFIX):
        raise _damaged(f"it does not begin with {PREFIX}")
    body = text.removeprefix(PREFIX)
    try:
        content = base64.b64decode(body.encode("ascii") + b"=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise _damaged("it has characters that no token has, or lacks some") from None
    if base64.urlsafe_b64encode(content).decode().rstrip("=") != body or len(content) < 1 + _KEY + 4:
        raise _damaged("it lacks characters")
    content, checksum = content[:-4], content[-4:]
    if zlib.crc32(content) != int.from_bytes(checksum, "big"):
        raise _damaged("its checksum does not match")
    if content[0] != _VERSION:
        raise InputError(f"join token: has form {content[0]}, and this Hansa reads form {_VERSION}; install the server's version")
    inflate = zlib.decompressobj(-15, _COMMON)
    try:
        ders = inflate.decompress(content[1 + _KEY :], _MOST_DER)
    except zlib.error:
        raise _damaged("its content cannot be inflated") from None
    if not inflate.eof or inflate.unused_data or len(ders) < 2:
        raise _damaged("its content is not two certificates")
    length = int.from_bytes(ders[:2], "big")
    return content[1 : 1 + _KEY], ders[2 : 2 + length], ders[2 + length :]


def _damaged(why: str) -> InputError:
    return InputError(f"join token: {why}; copy it again as a whole, from {PREFIX} on, or ask for a new one")
