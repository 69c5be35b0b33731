"""From exceptions to errno: no handler may let an exception out, as pyfuse3 then ends the mount."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3

from vmfs.errors import VmfsError
from vmfs.fs.log import warn_once
from vmfs.volumes.files.client import GuestError

# What programs are told all day.
_NO_NEWS = frozenset((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG))
P = ParamSpec("P")
S = TypeVar("S")
R = TypeVar("R")


def errno_of(error: Exception, doing: str) -> int:
    """The errno that tells a program of this error; the log tells a person."""
    if isinstance(error, GuestError):
        if error.errno not in _NO_NEWS:
            warn_once(str(error), level=logging.ERROR)
        return error.errno or errno.EIO
    if isinstance(error, VmfsError):
        warn_once(str(error), level=logging.ERROR)
        return errno.EIO
    if isinstance(error, MemoryError):
        warn_once(f"out of memory in {doing}", level=logging.ERROR)
        return errno.ENOMEM
    warn_once(f"unexpected {type(error).__name__} in {doing}: {error}", level=logging.ERROR, exc_info=True)
    return errno.EIO


def guarded(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """A FUSE handler that raises nothing but FUSEError."""

    @functools.wraps(handler)
    async def guard(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            raise pyfuse3.FUSEError(errno_of(error, handler.__name__)) from None

    return guard
