"""POSIX access control lists: from the form in which Linux keeps them in extended attributes
(include/uapi/linux/posix_acl_xattr.h) to the text of acl(5), which star and GNU tar keep."""

from __future__ import annotations

import struct

ACLS = {
    b"system.posix_acl_access": b"SCHILY.acl.access",
    b"system.posix_acl_default": b"SCHILY.acl.default",
}
"""The keyword of a pax header by the name of the attribute."""

_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_TAGS = {1: "user:", 2: "user:{}", 4: "group:", 8: "group:{}", 16: "mask:", 32: "other:"}


def acl_text(value: bytes) -> bytes | None:
    """None when it makes no sense."""
    if len(value) < 4 or _VERSION.unpack_from(value) != (2,) or (len(value) - 4) % _ENTRY.size:
        return None
    words = []
    for tag, permissions, number in _ENTRY.iter_unpack(value[4:]):
        if tag not in _TAGS or permissions > 7:
            return None
        shown = "".join(
            letter if permissions & bit else "-" for letter, bit in zip("rwx", (4, 2, 1), strict=True)
        )
        words.append(f"{_TAGS[tag].format(number)}:{shown}")
    return ",".join(words).encode()
