"""Single sign-on: tokens for a user and a password, which end when they are not used."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping

from lab.engine.model import Timing


class LoginFailed(Exception):
    """Wrong credentials, in the words of the engine."""

    code = "access_denied"


class SingleSignOn:
    """Thread-safe."""

    def __init__(self, username: str, password: str, timing: Timing) -> None:
        self.username = username
        self.password = password
        self._timing = timing
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()

    def login(self, form: Mapping[str, str]) -> str:
        """A new token. Raises LoginFailed."""
        if form.get("username") != self.username or form.get("password") != self.password:
            raise LoginFailed(
                f"Cannot authenticate user '{form.get('username', 'N/A')}': Unable to log in. Verify your "
                "login information or contact the system administrator.."
            )
        token = secrets.token_urlsafe(64)
        with self._lock:
            self._used[token] = time.monotonic()
        return token

    def logout(self, token: str) -> None:
        with self._lock:
            self._used.pop(token, None)

    def accepts(self, token: str | None) -> bool:
        """Whether a token is valid; it then is for longer."""
        now = time.monotonic()
        with self._lock:
            last = self._used.get(token or "")
            if token is None or last is None:
                return False
            if now - last > self._timing.session_idle:
                del self._used[token]
                return False
            self._used[token] = now
            return True

    def end_all(self) -> None:
        """All sessions end."""
        with self._lock:
            self._used.clear()

    @property
    def sessions(self) -> int:
        with self._lock:
            return len(self._used)
