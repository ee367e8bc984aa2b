"""File systems behind an address: one that lets nobody in, as a bucket does whose credentials are missing."""

import fsspec


class Closed(fsspec.AbstractFileSystem):
    """Refuses whatever is asked."""

    protocol = "closed"

    def ls(self, path, detail=True, **_):
        raise PermissionError("Forbidden: HeadBucket 403")

    def info(self, path, **_):
        raise PermissionError("Forbidden: HeadObject 403")


fsspec.register_implementation("closed", Closed, clobber=True)
