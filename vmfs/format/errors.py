"""Errors that a user may see. Each message is one line that names the thing and the remedy."""


class VmfsError(Exception):
    """Anything that went wrong in a way we expected. The commands print it and exit with `exit_status`."""

    exit_status = 1


class UsageError(VmfsError):
    """The request itself is wrong: a bad name, an unknown option value."""

    exit_status = 2


class IntegrityError(VmfsError):
    """Stored bytes are not what was written: damaged, forged, cut short, or of an unknown format."""

    exit_status = 3


class LengthError(IntegrityError):
    """A structure is shorter or longer than it says it is."""


class MagicError(IntegrityError):
    """The bytes are not of the kind of structure that was asked for."""


class VersionError(IntegrityError):
    """The structure is of a format version that this program does not know."""


class AuthenticationError(IntegrityError):
    """The bytes were changed, or were sealed with another key or under another name."""


class ContentError(IntegrityError):
    """The bytes are authentic and still make no sense."""
