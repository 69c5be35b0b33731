"""A private PostgreSQL for tests: a temporary directory, a unix socket, no root needed and none used."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import URL

PORT = 5499
"""Only names the socket file: nothing listens on the network."""


@contextmanager
def postgres_server() -> Iterator[Path]:
    """The directory of the socket of a running server. Its superuser is `postgres`."""
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    # Not pytest's tmp_path: a socket's path may be 107 bytes long.
    directory = Path(tempfile.mkdtemp(prefix="vmfs-pg-"))
    try:
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(directory, owner.pw_uid, owner.pw_gid)
        data = directory / "data"
        _run(initdb, "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "--locale=C.UTF-8")
        with (data / "postgresql.conf").open("a") as conf:
            conf.write(
                f"listen_addresses=''\nunix_socket_directories='{directory}'\nport={PORT}\n"
                "fsync=off\nsynchronous_commit=off\nfull_page_writes=off\nshared_buffers=32MB\n"
            )
        try:
            _run(pg_ctl, "-D", data, "-w", "-l", directory / "log", "start")
            yield directory
        finally:
            _run(pg_ctl, "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory)


def make_database(directory: Path, name: str) -> URL:
    """A new, empty database, as the URL of a catalog."""
    with psycopg.connect(host=str(directory), port=PORT, user="postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return URL.create(
        "postgresql",
        username="postgres",
        host=None,
        database=name,
        query={"host": str(directory), "port": str(PORT)},
    )


def _program(name: str) -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if not found:
        raise RuntimeError(f"{name} is not installed; run: apt-get install postgresql")
    return found[-1]


def _run(*argv: object) -> None:
    # PostgreSQL refuses to run as root.
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
    subprocess.run(
        [str(arg) for arg in argv],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd="/",
        **user,
    )
