"""A disk that takes no more is the machine's state, and no defect."""

from __future__ import annotations

import errno

from cove.errors import CoveError

_WHY = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "has no room left for Cove's user",
    errno.EROFS: "can only be read",
}


def full(fault: BaseException) -> CoveError | None:
    """`overloaded`, where that is what failed."""
    why = _WHY.get(fault.errno or 0) if isinstance(fault, OSError) else None
    if why is None:
        return None
    return CoveError(
        "overloaded",
        f"the disk that Cove keeps its data on {why}",
        hint="free space on the server's machine, then try again; what is deployed goes on serving "
        "meanwhile",
    )
