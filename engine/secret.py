"""Where the secret is kept, and that everyone agrees on it: with another one, no buyer would find their tickets."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from holdfast.engine.errors import ConfigurationError
from holdfast.engine.identity import Identity
from holdfast.engine.store import Store

#: Bytes of a generated secret.
SECRET_BYTES = 32

#: Characters of a given secret: fewer can be guessed offline from a single ticket id.
SECRET_CHARS_MIN = 16


class Keeper:
    """Keeps named secrets: 0600 files in the data directory, or rows of the store when Redis is external.

    Parameters
    ----------
    data_dir: of an embedded Redis; None when Redis is external.
    """

    def __init__(self, store: Store, data_dir: Path | None) -> None:
        self._store = store
        self._data_dir = data_dir

    def is_new(self, name: str) -> bool:
        """Whether a data directory has no secret of this name yet; False where secrets are kept in the store."""
        return self._data_dir is not None and not (self._data_dir / name).exists()

    async def kept(self, name: str, make: Callable[[], str]) -> str:
        """The secret of this name, made once."""
        if self._data_dir is None:
            return await self._store.kept(name, make)
        path = self._data_dir / name
        try:
            # Linked into place when complete: whoever reads it never sees half of it.
            fresh = path.with_name(f".{name}.{secrets.token_hex(8)}")
            if not path.exists():
                with os.fdopen(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                    file.write(make())
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    os.link(fresh, path)
                except FileExistsError:
                    pass
                finally:
                    fresh.unlink()
            return path.read_text().strip()
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from error


async def establish(given: str | bytes | None, keeper: Keeper, store: Store) -> Identity:
    """The identity for this deployment.

    Parameters
    ----------
    given: the configured secret, or None to use the one that was made on the first start.

    Raises
    ------
    ConfigurationError: the secret is short, or another than the one that this store's data were made with.
    """
    if given is None and keeper.is_new("secret") and await store.peek("secret-check") is not None:
        # Made now, a secret would only be refused, here and at every start that finds it.
        raise ConfigurationError(
            "the data directory has no secret, and its store was used with one: if that was with --redis, give that "
            "--redis; otherwise put the file 'secret' back, or set HOLDFAST_SECRET"
        )
    text = given or await keeper.kept("secret", lambda: secrets.token_urlsafe(SECRET_BYTES))
    raw = text.encode() if isinstance(text, str) else text
    if len(raw) < SECRET_CHARS_MIN:
        raise ConfigurationError(f"secret: {len(raw)} characters are too few, give at least {SECRET_CHARS_MIN}")
    identity = Identity(hashlib.blake2b(raw, digest_size=SECRET_BYTES, person=b"holdfast").digest())
    check = identity.check()
    if await store.kept("secret-check", lambda: check) != check:
        raise ConfigurationError(
            "secret: the store was used with another one, under which its buyers and tickets are known; "
            "start with that one (HOLDFAST_SECRET, or the file 'secret' that lay in the data directory)"
        )
    return identity
