# SPDX-License-Identifier: MIT
"""What a worker gives up before it looks at the first byte of a guest's."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress

from .seccomp import confine_calls

_NOBODY = 65534
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_CLONE_NEWIPC = 0x08000000
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


def confine(*, keep: int, memory: int, cpu_seconds: int) -> list[str]:
    """For good. `keep` is the one descriptor that stays open besides the standard ones; `memory` the address
    space in bytes. Returns what took effect: user, network, limits, privileges, calls."""
    done = []
    libc = ctypes.CDLL(None)
    os.chdir("/")
    os.environ.clear()
    os.closerange(3, keep)
    os.closerange(keep + 1, 1 << 16)
    namespaces = _CLONE_NEWNET | _CLONE_NEWIPC
    if libc.unshare(namespaces) == 0 or libc.unshare(namespaces | _CLONE_NEWUSER) == 0:
        done.append("network")
    if os.geteuid() != 0 or _become_nobody():
        done.append("user")
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    _limit(memory, cpu_seconds)
    done.append("limits")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        done.append("privileges")
        if confine_calls():
            done.append("calls")
    return done


def _become_nobody() -> bool:
    with suppress(OSError):
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        return True
    return False


def _limit(memory: int, cpu_seconds: int) -> None:
    for which in (
        resource.RLIMIT_FSIZE,
        resource.RLIMIT_NPROC,
        # None can be opened any more, whatever the filter of system calls lets through.
        resource.RLIMIT_NOFILE,
        resource.RLIMIT_CORE,
        resource.RLIMIT_MEMLOCK,
    ):
        resource.setrlimit(which, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    # Not the hard one: the client moves it on while it watches.
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or hard > cpu_seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, hard))
