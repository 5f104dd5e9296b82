"""Host ids for sandboxes: each has a range that nobody else on the machine uses."""

from __future__ import annotations

from collections.abc import Iterable

from cove.errors import CoveError

FIRST_ID = 0x70000000  # systemd-nspawn's ranges end below it, 2^31 above it
IDS_EACH = 65536
SLOTS = 4096


class IdRanges:
    """Hands out the first id of a free range; the lowest free one, so that they stay few."""

    def __init__(self) -> None:
        self._used: set[int] = set()

    def take(self, elsewhere: Iterable[int] = ()) -> int:
        """The first of 65536 ids. `CoveError("overloaded")` when all 4096 ranges are taken.

        `elsewhere` are ids that run processes on this host: another Cove's, or an earlier one's.
        """
        taken = self._used | {(one - FIRST_ID) // IDS_EACH for one in elsewhere}
        slot = next((n for n in range(SLOTS) if n not in taken), None)
        if slot is None:
            raise CoveError(
                "overloaded",
                f"all {SLOTS} ranges of user ids for sandboxes are taken",
                hint="lower scale.max, or wait until instances have stopped",
            )
        self._used.add(slot)
        return FIRST_ID + slot * IDS_EACH

    def hold(self, first_id: int) -> None:
        """Take a range that is in use already: an adopted instance's."""
        self._used.add((first_id - FIRST_ID) // IDS_EACH)

    def free(self, first_id: int) -> None:
        """Give a range back. Its processes must be gone."""
        self._used.discard((first_id - FIRST_ID) // IDS_EACH)

    def __repr__(self) -> str:
        return f"<IdRanges {len(self._used)} of {SLOTS}>"
