"""Who is asking. One key from the settings stands for one tenant; without a key only this machine can ask."""

import hashlib
import hmac

from pydantic import SecretStr

from server.errors import KeyRefused

DEFAULT_TENANT = "default"


class Tenants:
    """Knows the keys by their hashes only."""

    def __init__(self, api_key: SecretStr | None) -> None:
        self._digest = _digest(api_key.get_secret_value()) if api_key is not None else None

    def tenant_of(self, authorization: str | None) -> str:
        """The tenant of an Authorization header. Raises ``KeyRefused``; without a key set, anyone is the one tenant."""
        if self._digest is not None:
            scheme, _, key = (authorization or "").partition(" ")
            # Hashes have one length and no order that a client could steer, so the comparison tells nothing.
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(key.strip()), self._digest):
                raise KeyRefused
        return DEFAULT_TENANT


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
