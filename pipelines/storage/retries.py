"""Attempts: a call is made again, with bounded and growing waits, after an error that may pass."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipelines.storage.errors import StorageError, UnreachableError
from pipelines.storage.store import Store

T = TypeVar("T")

# A store that throttles or restarts is back within seconds. The waits of 0.2, 0.4, ... s (jittered) add up to about
# 6 s, and S3's client below them waits about 9 s more.
ATTEMPTS = 6
FIRST_WAIT_S = 0.2


def attempt(store: Store, call: Callable[[], T], where: str) -> T:
    """Call until it succeeds, at most ATTEMPTS times. `where` is the URL of the file, for errors.

    Raises: the store's final error; UnreachableError for a store that does not answer; OSError after the last attempt.
    """
    for number in range(ATTEMPTS):
        try:
            return call()
        except StorageError:
            raise
        except store.passing as error:
            final = store.final(error, where)
            if final is not None:
                raise final from error
            if number == ATTEMPTS - 1:
                raise _given_up(store, error, where) from error
        time.sleep(FIRST_WAIT_S * 2**number * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def _given_up(store: Store, error: BaseException, where: str) -> OSError:
    if variable := store.unreachable(error):
        return UnreachableError(f"{where}: {error}; check {variable} and the network")
    why = str(error) or type(error).__name__  # a timeout has no text
    return OSError(f"{where}: gave up after {ATTEMPTS} attempts: {why}")
