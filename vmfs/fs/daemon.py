"""Going into the background, so that the command returns when the mount is up, or says why it is not."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from vmfs.errors import VmfsError

log = logging.getLogger(__name__)

Serve = Callable[[Callable[[], None]], None]
"""Serves until the end of the mount; calls its argument once when the mount is up."""

_SYSLOG = "/dev/log"


def run_in_background(serve: Serve, log_file: Path | None) -> int:
    """Run `serve` in a process of its own. Returns when it is ready: 0, or the exit status of its error,
    which is printed. No thread may run yet: a fork takes along their locks, and not them."""
    if threading.active_count() != 1:
        raise RuntimeError("a process with threads cannot go into the background")
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        # Twice, so that the daemon leads no session and no terminal can become its own.
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        _be_daemon(serve, log_file, writing)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return _wait(pipe.readline)


def _wait(read: Callable[[], str]) -> int:
    """What the daemon says: first its pid, then how it went."""
    pid = 0
    try:
        first = read()
        pid = json.loads(first)["pid"] if first else 0
        last = read()
    except KeyboardInterrupt:
        if pid:
            os.kill(pid, signal.SIGTERM)
        raise
    if not last:
        print("vmfs: the mount's process died before the mount was up; see its log", file=sys.stderr)
        return 1
    said = json.loads(last)
    if said["error"]:
        print(f"vmfs: {said['error']}", file=sys.stderr)
    return int(said["status"])


def _be_daemon(serve: Serve, log_file: Path | None, pipe: int) -> NoReturn:
    status = 1
    ready = False

    def say(**message: object) -> None:
        os.write(pipe, json.dumps(message).encode() + b"\n")

    def on_ready() -> None:
        nonlocal ready
        ready = True
        # Raises if the parent was interrupted meanwhile: nobody wants this mount any more.
        say(status=0, error="")
        os.close(pipe)
        _redirect(1, 2)

    try:
        os.chdir("/")
        _redirect(0)
        say(pid=os.getpid())
        log_to(log_file)
        serve(on_ready)
        status = 0
    except BaseException as error:
        status = getattr(error, "exit_status", 1)
        if ready:
            log.error("the mount ended: %s", error, exc_info=not isinstance(error, VmfsError))
        else:
            if not isinstance(error, VmfsError):
                log.exception("unexpected error before the mount was up")
            _say_quietly(say, status, str(error) or type(error).__name__)
    finally:
        logging.shutdown()
        os._exit(status)


def _say_quietly(say: Callable[..., None], status: int, error: str) -> None:
    try:
        say(status=status, error=error)
    except OSError:
        log.debug("nobody waits for the mount any more")


def _redirect(*descriptors: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)


def log_to(log_file: Path | None) -> None:
    """From here on, log to that file (it may be rotated), else to syslog where there is one. Raises VmfsError
    if the file cannot be written."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    if log_file is not None:
        try:
            handler = logging.handlers.WatchedFileHandler(log_file)
        except OSError as error:
            raise VmfsError(f"log file {log_file}: {os.strerror(error.errno or 0)}") from None
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    elif os.path.exists(_SYSLOG):
        handler = logging.handlers.SysLogHandler(_SYSLOG, logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.setFormatter(logging.Formatter(f"vmfs[{os.getpid()}]: %(levelname)s %(message)s"))
    else:
        handler = logging.NullHandler()
    root.addHandler(handler)
    if root.level in (logging.NOTSET, logging.WARNING):
        root.setLevel(logging.INFO)
