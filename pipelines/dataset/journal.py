"""The journal of a dataset in the making: a shortcut for the next start."""

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
    """The records of finished shards, some hundreds to a file, so that a restart needs no request a shard.

    Only a shortcut: a shard that it does not know is read, and a record that does not fit the part's listed size is not
    used. Each file holds its own hash, taken over the dataset's identity too: one that is damaged, or of another
    dataset, is as good as none. Its files go when the dataset is sealed.
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
            noted = json.loads(self._folder.read(name))
            entries: list[dict[str, Any]] = noted["records"]
            return entries if noted["sha256"] == self._hash(entries) else []
        except (KeyError, RecursionError, TypeError, ValueError, StorageError):
            return []

    def _hash(self, entries: list[dict[str, Any]]) -> str:
        return hashlib.sha256(canonical([self.identity.to_json(), entries])).hexdigest()

    def add(self, record: ShardRecord, has_rejects: bool) -> None:
        """Note a finished shard. One with rejects is left out: they stand in its part only."""
        if not has_rejects:
            self._new.append(record)
        if len(self._new) >= self.SHARDS_A_FILE:
            self.flush()

    def flush(self) -> None:
        """Write down what is noted, if the storage lets us: what is lost here costs a request a shard, and no more."""
        noted, self._new = self._new, []
        if noted:
            name = f"{noted[0].shard:06d}.json"
            with contextlib.suppress(OSError):
                entries = [asdict(record) for record in noted]
                self._folder.write(f"journal/{name}", canonical({"records": entries, "sha256": self._hash(entries)}))
                self._names.append(name)

    def delete(self) -> None:
        """Remove the files; what cannot be removed now is tried again at the next start."""
        with contextlib.suppress(OSError):
            for name in self._names:
                self._folder.delete(f"journal/{name}")
            self._folder.sweep("journal")
            self._folder.remove("journal")
