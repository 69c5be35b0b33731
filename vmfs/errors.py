"""All errors of vmfs in one place; the format's own are defined with the format."""

from vmfs.format.errors import (
    AuthenticationError,
    ContentError,
    IntegrityError,
    LengthError,
    MagicError,
    UsageError,
    VersionError,
    VmfsError,
)

__all__ = [
    "AuthenticationError",
    "ContentError",
    "IntegrityError",
    "LengthError",
    "MagicError",
    "ObjectExistsError",
    "ObjectMissingError",
    "StoreError",
    "UsageError",
    "VersionError",
    "VmfsError",
]


class StoreError(VmfsError):
    """The place where the repository is kept did not do what was asked: no space, no permission, an error."""


class ObjectMissingError(StoreError):
    """The store has no object of that name."""


class ObjectExistsError(StoreError):
    """The store already has an object of that name, and objects never change."""
