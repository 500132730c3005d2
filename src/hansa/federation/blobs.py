"""Blobs: files named by the SHA-256 of their content, in a folder or in an object store.

A blob is there or it is not: it becomes visible when all of it is durable and its digest has been verified, and it never changes.
Uploads in progress lie beside the blobs, one file for each owner and digest, so that they can be resumed and nobody disturbs another's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hansa.core.errors import InputError, missing_extra
from hansa.federation.blob import STEP, Blob, Busy, MissingBlob, blob_of, check_digest
from hansa.federation.buckets import Bucket
from hansa.federation.folders import Folder
from hansa.federation.uploads import Partial

CACHE = 16 * 2**30
"""Bytes of an object store's blobs that are kept in a local folder."""


@runtime_checkable
class Blobs(Protocol):
    """What every store offers. All methods raise InputError for what is not a digest; they may be called from any thread."""

    @property
    def scratch(self) -> Path:
        """A folder for files to be :meth:`put`."""
        ...

    def put(self, path: Path) -> Blob:
        """Move a finished local file in. It is durable when this returns, and then no longer at ``path``."""
        ...

    def keep(self, digest: str, content: bytes | memoryview) -> None:
        """Store content that is known to have that digest. It is durable when this returns."""
        ...

    def has(self, digest: str) -> bool: ...

    def renew(self, digest: str) -> bool:
        """As :meth:`has`; a blob that is there counts as new for :meth:`sweep`."""
        ...

    def size(self, digest: str) -> int:
        """Bytes. Raises MissingBlob."""
        ...

    def local(self, digest: str) -> Path:
        """A local file with the content, to be opened now and never written. Raises MissingBlob."""
        ...

    def read(self, digest: str, offset: int = 0, chunk: int = STEP) -> Iterator[bytes]:
        """The content from an offset on, in chunks. Raises MissingBlob."""
        ...

    def remove(self, digest: str) -> None:
        """Forget a blob, if it is there. Files that are open, or mapped, stay readable."""
        ...

    def partial(self, digest: str, owner: str, size: int, limit: int) -> Partial:
        """Begin or resume an upload of ``size`` bytes; one that the same owner has under way here ends.

        Raises InputError for more than ``limit`` bytes, Busy while another process writes the same upload.
        """
        ...

    def claim(self, owner: str) -> str:
        """Whose store this is: ``owner``, unless somebody else has claimed it before."""
        ...

    def sweep(self, keep: Collection[str], older_than: float) -> int:
        """Remove the blobs that are not to be kept, and uploads and scratch files nobody goes on with, last touched more than
        ``older_than`` seconds ago. Returns how many blobs."""
        ...

    def close(self) -> None:
        """End the uploads that are under way here; they may be resumed."""
        ...


def open_blobs(where: str | Path, options: Mapping[str, Any] | None = None, home: Path | None = None, cache: int = CACHE) -> Blobs:
    """The store at a path, or at a URL that fsspec knows (``s3://bucket/prefix``).

    options: of the file system, as fsspec takes them (``endpoint_url``, ``key``, ``secret``).
    home:    of an object store: the local folder for uploads in progress and for downloads, of which ``cache`` bytes are kept.
    """
    scheme, separator, rest = str(where).partition("://")
    if not separator or scheme == "file":
        return Folder(Path(rest if separator else where))
    if home is None:
        raise InputError(f"blobs {where}: an object store needs a local folder beside it for uploads in progress; give home")
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise missing_extra("fsspec", "federation") from None
    try:
        system, root = url_to_fs(str(where), **{"use_listings_cache": False, **(options or {})})
    except (ImportError, ValueError) as error:
        raise InputError(
            f"blobs {where}: {error} (give a folder, or a URL that fsspec knows, with its package installed)"
        ) from None
    return Bucket(system, root.rstrip("/"), Folder(home), cache)


__all__ = ["STEP", "Blob", "Blobs", "Bucket", "Busy", "Folder", "MissingBlob", "Partial", "blob_of", "check_digest", "open_blobs"]
