"""Where an engine is and who logs in to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from vmfs.errors import UsageError

API_PATH = "/ovirt-engine/api"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """`url` is that of the API, ending in /ovirt-engine/api. Either `username` and `password`, or `token`;
    with a token alone there is no logging in again when the session ends. Without `ca_file` the system's
    CAs are trusted; `insecure` trusts everybody."""

    name: str
    url: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    insecure: bool = False

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""


def api_url(text: str) -> str:
    """`https://engine.example.com[:port]/ovirt-engine/api` from that, from the engine's front page or from
    its bare host name. Raises UsageError."""
    told = text if "//" in text else f"https://{text}"
    try:
        parts = urlsplit(told)
        port = parts.port
    except ValueError:
        raise UsageError(f"{text!a} is no URL; write it as https://engine.example.com") from None
    if parts.scheme != "https":
        raise UsageError(f"{text!a} does not begin with https://, and the engine speaks nothing else")
    if not parts.hostname or any(char.isspace() or not char.isprintable() for char in told):
        raise UsageError(f"{text!a} has no host name; write it as https://engine.example.com")
    if parts.username is not None or parts.password is not None:
        raise UsageError("leave user name and password out of the engine's URL; see --username")
    if parts.query or parts.fragment or parts.path.rstrip("/") not in ("", "/ovirt-engine", API_PATH):
        raise UsageError(f"{text!a} is not an engine's URL; write it as https://engine.example.com")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"https://{host}{f':{port}' if port is not None else ''}{API_PATH}"


def base_url(url: str) -> str:
    """`https://host:port` of the engine whose API is at `url`."""
    return url.removesuffix(API_PATH)
