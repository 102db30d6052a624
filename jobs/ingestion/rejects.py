"""Entries of a source that are not taken: counts by reason, the allowance of --max-rejects, and the balance."""

from collections import Counter
from collections.abc import Mapping, Sequence

from jobs.command.errors import LostWorkError
from pipelines.dataset import layout, manifest
from pipelines.dataset.manifest import Reject
from pipelines.storage.folder import Folder

MOST_KINDS = 20  # of ignored files, in the printed line; dataset.json has all
_DUPLICATES = ("duplicate:", "near duplicate:")


def count_by_reason(rejects: Sequence[Reject]) -> dict[str, int]:
    """The number of rejects for each reason, the most frequent first."""
    return dict(Counter(reject.reason.split(":")[0] for reject in rejects).most_common())


def check_rejects(rejects: list[Reject], allowed: str, folder: Folder, count: int) -> None:
    """Compare the rejects with an allowance. Duplicates do not count.

    Args:   allowed: as the setting has it. count: images of the dataset.
    Raises: LostWorkError if there are more; the list of all rejects is in the folder then.
    """
    failed = [reject for reject in rejects if not reject.reason.startswith(_DUPLICATES)]
    most = int(allowed) if allowed.isdecimal() else float(allowed) * count
    if len(failed) > most:
        folder.write(layout.REJECTS, manifest.encode_rejects(rejects))
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in count_by_reason(failed).items())
        raise LostWorkError(
            f"{folder}: {len(failed):,} of {count:,} images could not be taken ({reasons}; the first: "
            f"{failed[0].source}: {failed[0].reason}), more than --max-rejects {allowed}. {folder}/{layout.REJECTS} "
            "lists all of them. The rest is done: with a higher --max-rejects the same command seals it"
        )


def print_balance(listed: int, taken: int, rejected: int, ignored: Mapping[str, int]) -> None:
    """Print the outcome for every entry that the source lists."""
    left_out = sum(ignored.values())
    if ignored:
        kinds = sorted(ignored.items(), key=lambda kind: (-kind[1], kind[0]))
        shown = ", ".join(f"{count:,} {why}" for why, count in kinds[:MOST_KINDS])
        more = f" and {len(kinds) - MOST_KINDS:,} other kinds" if len(kinds) > MOST_KINDS else ""
        print(f"ingest: ignored: {left_out:,} files: {shown}{more}")
    print(f"ingest: {listed:,} listed = {taken:,} taken + {rejected:,} rejected + {left_out:,} ignored")
