"""The journal of an unsealed dataset: it makes the next start faster."""

import contextlib
import hashlib
import json
from dataclasses import asdict
from typing import Any

from pipelines.dataset.claim import canonical
from pipelines.dataset.identity import Identity
from pipelines.dataset.manifest import ShardRecord
from pipelines.storage.folder import Folder, StorageError


class Journal:
    """The records of finished shards, some hundreds to a file: a restart does not need one request a shard.

    The journal is never needed. The part of a shard without a record is read, and a record that differs from the
    part's listed size is ignored. Each file holds a hash of the dataset's identity and its records: a file that is
    damaged, or of another dataset, is ignored. The files are removed when the dataset is sealed.
    """

    SHARDS_A_FILE = 256

    def __init__(self, folder: Folder, identity: Identity) -> None:
        self._folder, self.identity = folder, identity
        self._names = sorted(folder.list("journal"))
        self._new: list[ShardRecord] = []
        self.records: dict[int, ShardRecord] = {}
        for name in self._names:
            for entry in self._read(f"journal/{name}"):
                self.records[entry["shard"]] = ShardRecord(**entry)

    def _read(self, name: str) -> list[dict[str, Any]]:
        try:
            content = json.loads(self._folder.read(name))
            entries: list[dict[str, Any]] = content["records"]
            return entries if content["sha256"] == self._hash(entries) else []
        except (KeyError, RecursionError, TypeError, ValueError, StorageError):
            return []

    def _hash(self, entries: list[dict[str, Any]]) -> str:
        return hashlib.sha256(canonical([self.identity.to_json(), entries])).hexdigest()

    def add(self, record: ShardRecord, has_rejects: bool) -> None:
        """Add a finished shard. A shard with rejects is left out: only its part records them."""
        if not has_rejects:
            self._new.append(record)
        if len(self._new) >= self.SHARDS_A_FILE:
            self.flush()

    def flush(self) -> None:
        """Write the new records, if the storage allows it. A record that is lost only costs one request."""
        new, self._new = self._new, []
        if new:
            name = f"{new[0].shard:06d}.json"
            with contextlib.suppress(OSError):
                entries = [asdict(record) for record in new]
                self._folder.write(f"journal/{name}", canonical({"records": entries, "sha256": self._hash(entries)}))
                self._names.append(name)

    def delete(self) -> None:
        """Remove the files. The next start tries again with those that cannot be removed now."""
        with contextlib.suppress(OSError):
            for name in self._names:
                self._folder.delete(f"journal/{name}")
            self._folder.sweep("journal")
            self._folder.remove("journal")
