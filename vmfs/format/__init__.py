"""What the bytes of a repository are, version 1 (docs/format.md).

Pure functions and structures: no I/O, no clock, no randomness of their own. Imports nothing else of vmfs.
All integers are little-endian. Every parser checks, in this order: length, magic, version, authentication,
content; and raises LengthError, MagicError, VersionError, AuthenticationError or ContentError.
"""

VERSION = 1
