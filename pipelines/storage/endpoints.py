"""What the stores have in common: how long a call may take, what an error means, and where none may be.

Each `store_*.py` beside this file has the same names:

    PASSING                 the errors that its library raises
    open_filesystem()       its fsspec filesystem, with time limits and without retries of its own: storage.py has those
    ENDPOINT                the environment variable that says where it is
    verdict(error)          what an error means: MISSING, EXISTS, NO_BUCKET, CUT, other words, or "": it may pass
    unreachable(error)      whether there was no answer at all
    has_bucket(fs, bucket)  asked when a file is missing, since not every store says which of the two is not there
    abort_uploads(fs, path, older_s)    drop what was begun below a path and never completed
"""

import functools
import ipaddress
import socket
from urllib.parse import urlsplit

CONNECT_S = 10
READ_S = 20  # without a byte; a store that says nothing for so long is asked again
MISSING, EXISTS = "not found", "exists"
NO_BUCKET = "the bucket does not exist; create it, or check the name"
CUT = "the file is cut short"
DENIED = "permission denied; check the credentials in the environment, and what they may do"

# What a cloud's machines are told of themselves, credentials included. Link-local addresses are refused as a whole.
_METADATA_NAMES = (
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
)
_METADATA_ADDRESSES = frozenset(
    ipaddress.ip_address(address)
    for address in (
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle
        "168.63.129.16",  # Azure
    )
)


class EndpointError(ValueError):
    """An endpoint that no store can have: one line that names where it came from."""


@functools.cache
def check_endpoint(source: str, url: str) -> None:
    """Refuse the address of a cloud's metadata service, in any spelling that the resolver takes for it.

    Args:   source: where the URL was set, for the error. url: as the store's library will ask it.
    Raises: EndpointError. A name that does not resolve is left to the library, which will not reach it either.
    """
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        # The resolver knows 2852039166, 0xA9FEA9FE and 0251.0376.0251.0376 too, and what a name stands for.
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        found = set()
    if host.lower() in _METADATA_NAMES or any(_forbidden(address) for address in found):
        shown = url.replace(f"{urlsplit(url).netloc.rpartition('@')[0]}@", "")
        raise EndpointError(
            f"{source} is {shown}: the address of a cloud's metadata service, or link-local; no store is there"
        )


def _forbidden(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    forms = [ip]
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = [ip.ipv4_mapped, ip.sixtofour]
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            embedded.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        forms += [inner for inner in embedded if inner]
    return any(form.is_link_local or form in _METADATA_ADDRESSES for form in forms)
