"""Endpoints at which no store can be: the metadata services of clouds, which hold a machine's credentials."""

import functools
import ipaddress
import socket
from urllib.parse import urlsplit

from pipelines.storage.errors import StorageError

# A cloud's machine gets facts about itself here, credentials included. All link-local addresses are refused.
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


@functools.cache
def check_endpoint(source: str, url: str) -> None:
    """Refuse the address of a cloud's metadata service, in any spelling that the resolver accepts.

    Args:   source: where the URL was set, for the error. url: as the store's library uses it.
    Raises: StorageError. A name that does not resolve passes: the library cannot reach it either.
    """
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        # The resolver also accepts 2852039166, 0xA9FEA9FE and 0251.0376.0251.0376, and resolves names.
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        found = set()
    if host.lower() in _METADATA_NAMES or any(_forbidden(address) for address in found):
        shown = url.replace(f"{urlsplit(url).netloc.rpartition('@')[0]}@", "")
        raise StorageError(
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
