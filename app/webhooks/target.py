"""Where a webhook may go: the guard against being sent to what only this machine can reach (OWASP API7, SSRF).

A URL comes from a venue, so it is not to be trusted. It is taken apart once, by the strict pattern below, and only the
parts are used. A name says nothing about where it leads: it is resolved once, every address of it is checked, and the
connection goes to a checked address and nowhere else. So it does not matter what the name says a moment later, nor how
an address was written (2130706433, 0177.0.0.1, 0x7f.1).
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import msgspec

_H, _BYTE = "[0-9A-Fa-f]{1,4}", "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
#: Addresses of IPv6 as people write them, and only such as are one: whole, shortened once, or of an IPv4 address.
_V6 = (
    rf"{_H}(?::{_H}){{7}}|(?:{_H}(?::{_H}){{0,2}})?::(?:{_H}(?::{_H}){{0,3}})?"
    rf"|(?:::|(?:0:){{5}})ffff:{_BYTE}(?:\.{_BYTE}){{3}}"
)
#: What a URL must look like: no user, no fragment, nothing that two readers could understand in two ways.
URL = (
    rf"https?://([A-Za-z0-9._-]{{1,253}}|\[(?:{_V6})\])(:[0-9]{{1,5}})?"
    r"([/?][A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]*)?"
)

MAX_URL_LENGTH = 2_000

#: Not public although `is_global` of some Python says so: relays and translators that lead back into private networks,
#: and what clouds answer their own machines with.
_INSIDE = tuple(
    ip_network(text)
    for text in (
        "100.64.0.0/10",  # shared by customers of one carrier
        "168.63.129.16/32",  # Azure's metadata
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "192.88.99.0/24",  # 6to4 relays
        "240.0.0.0/4",
        "2001::/23",  # Teredo and other tunnels
        "2001:db8::/32",
        "2002::/16",  # 6to4: has an IPv4 address in it
        "3fff::/20",
    )
)
#: All of IPv6 that is given to anybody. Outside of it are loopback, private, link-local, multicast and site-local
#: addresses, IPv4-mapped ones (::ffff:0:0/96) and those of NAT64, which have an IPv4 address in them.
_GLOBAL_UNICAST = ip_network("2000::/3")

Address = IPv4Address | IPv6Address
#: Tell the addresses of a host, in the order in which they should be tried.
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]


class NotAllowed(Exception):
    """Nothing may be sent there; the text says why, and fits a list of deliveries."""


class Target(msgspec.Struct, frozen=True):
    """A URL, taken apart. `host` is in lower case, without brackets and without a dot at its end."""

    scheme: str
    host: str
    port: int
    #: With the query; begins with a slash.
    path: str

    @property
    def authority(self) -> str:
        """Name the host as the Host header does."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _DEFAULT_PORTS[self.scheme] else f"{name}:{self.port}"

    def at(self, address: Address) -> str:
        """Write the URL with an address in the place of the name."""
        host = f"[{address}]" if address.version == 6 else str(address)
        return f"{self.scheme}://{host}:{self.port}{self.path}"


_DEFAULT_PORTS = {"https": 443, "http": 80}


def parse(url: str) -> Target:
    """Take a URL apart.

    Raises:
        NotAllowed: it is not of the form of `URL`.
    """
    parts = re.fullmatch(URL, url)
    if parts is None or len(url) > MAX_URL_LENGTH:
        raise NotAllowed("the URL is not a plain https URL")
    scheme, host, path = url.partition(":")[0], parts[1].lower(), parts[3] or "/"
    if host.startswith("["):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise NotAllowed("the URL has brackets around what is no IPv6 address")
    host = host.removesuffix(".")
    port = int(parts[2][1:]) if parts[2] else _DEFAULT_PORTS[scheme]
    if not host or not 1 <= port <= 65_535:
        raise NotAllowed("the URL names no host, or no port that there is")
    return Target(scheme, host, port, path if path.startswith("/") else f"/{path}")


def _is_ipv6(host: str) -> bool:
    try:
        return ip_address(host).version == 6
    except ValueError:
        return False


def require_plausible(url: str, *, allow_private: bool) -> None:
    """Refuse a URL that no delivery could ever go to, as far as that can be told without asking for its name.

    Raises:
        NotAllowed
    """
    target = parse(url)
    _require_scheme(target, allow_private=allow_private)
    try:
        address = ip_address(target.host)
    except ValueError:
        if re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)", target.host.rpartition(".")[2]) or ":" in target.host:
            raise NotAllowed("the URL has an IP address in an unusual form") from None
        if "." not in target.host and not allow_private:
            raise NotAllowed("the URL must name a host with its domain") from None
        return
    _require_public(address, allow_private=allow_private)


async def resolved(target: Target, resolve: Resolver, *, allow_private: bool) -> Sequence[Address]:
    """Resolve a target once; returns the addresses that may be connected to.

    One forbidden address among them forbids all: a name that leads inside at times is not what it seems to be.

    Raises:
        NotAllowed
    """
    _require_scheme(target, allow_private=allow_private)
    try:
        found = await resolve(target.host, target.port)
        addresses = [ip_address(text) for text in dict.fromkeys(found)]
    except (OSError, ValueError):  # UnicodeError, of a name that cannot be one, is a ValueError
        raise NotAllowed("the name of the host leads nowhere") from None
    if not addresses:
        raise NotAllowed("the name of the host leads nowhere")
    for address in addresses:
        _require_public(address, allow_private=allow_private)
    return addresses


async def by_system(host: str, port: int) -> Sequence[str]:
    """Resolve as every program on this machine does."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the Internet's, for a single host."""
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    inside = any(address in network for network in _INSIDE if network.version == address.version)
    return address.is_global and not address.is_multicast and not address.is_reserved and not inside


def _require_scheme(target: Target, *, allow_private: bool) -> None:
    if target.scheme != "https" and not allow_private:
        raise NotAllowed("the URL must begin with https://")


def _require_public(address: Address, *, allow_private: bool) -> None:
    if not allow_private and not is_public(address):
        raise NotAllowed("the host has an address that is not public")
