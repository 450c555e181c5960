"""Pictures from allowed hosts on the open internet, fetched beside the work of answering."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Collection, Iterable
from itertools import chain, zip_longest
from typing import Any
from urllib.parse import urlsplit

import httpcore

from crome.errors import InputError

NAT64 = ipaddress.ip_network("64:ff9b::/96")
CONNECT_SECONDS = 3.0
TOGETHER = 16
MAX_URL = 8192  # characters; Python keeps the parts of the last addresses that it took apart


def is_public(address: str) -> bool:
    """Whether an address is on the open internet: not this machine, nor its own network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    reached: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [ip]
    if isinstance(ip, ipaddress.IPv6Address):  # some only wrap an IPv4 address
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        reached = [i for i in inner if i is not None] or reached
    return all(i.is_global and not i.is_multicast for i in reached)


class CheckedAddresses(httpcore.AsyncNetworkBackend):
    """Connects only to addresses that were checked, each in turn until one answers.

    The address that was checked is the one connected to: a name could change between.

    Args:
        may_connect: Which addresses a host may have.
    """

    def __init__(self, may_connect: Callable[[str], bool]) -> None:
        self._may_connect = may_connect
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address that answers.

        Raises:
            InputError: One of the addresses is inside a private network.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not addresses or not all(map(self._may_connect, addresses)):
            raise InputError("it names a host inside a private network.")
        six = [a for a in addresses if ":" in a]
        four = [a for a in addresses if ":" not in a]
        last: Exception = httpcore.ConnectError("no address")
        for address in filter(None, chain.from_iterable(zip_longest(six, four))):
            try:
                return await self._inner.connect_tcp(address, port, CONNECT_SECONDS)
            except (httpcore.ConnectError, httpcore.ConnectTimeout, OSError) as error:
                last = error
        raise last


class Fetcher:
    """Gets pictures: one request each, no redirects, bounded in size and time.

    Args:
        hosts: From which pictures may be fetched.
        max_bytes: Of one picture.
        timeout: Seconds for a whole fetch.
        may_connect: Which addresses an allowed host may have.
    """

    def __init__(
        self,
        hosts: Collection[str] = (),
        max_bytes: int = 20 << 20,
        timeout: float = 10,
        may_connect: Callable[[str], bool] = is_public,
    ) -> None:
        self.hosts = hosts
        self.max_bytes = max_bytes
        self.timeout = timeout
        self._backend = CheckedAddresses(may_connect)
        self._places = asyncio.Semaphore(TOGETHER)

    async def fetch(self, url: str) -> bytes:
        """The bytes behind a URL.

        Raises:
            InputError: The host is not allowed or does not answer with a picture in time.
        """
        if len(url) > MAX_URL:
            raise InputError(f"it is an address of more than {MAX_URL:,} characters.")
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").lower()
            _ = parts.port
        except ValueError as error:
            raise InputError("it is not a valid URL.") from error
        if host not in self.hosts:
            raise InputError("it names a host that this server does not fetch from.")
        if any(c <= " " or c > "~" for c in url):
            raise InputError("it has characters that must be percent-encoded.")
        try:
            async with self._places, asyncio.timeout(self.timeout):
                return await self._get(url, host)
        except TimeoutError as error:
            raise InputError(f"it took more than {self.timeout:g} s to fetch.") from error
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError,
                httpcore.UnsupportedProtocol, httpcore.TimeoutException) as error:  # fmt: skip
            raise InputError(f"it could not be fetched from {host}.") from error

    async def _get(self, url: str, host: str) -> bytes:
        target = url.partition("#")[0]
        async with (
            httpcore.AsyncConnectionPool(network_backend=self._backend) as pool,
            pool.stream("GET", target, headers={"Accept": "image/*"}) as response,
        ):
            if response.status != 200:
                raise InputError(f"{host} answered {response.status}.")
            data = bytearray()
            async for part in response.aiter_stream():
                data += part
                if len(data) > self.max_bytes:
                    raise InputError(f"it is too large; at most {self.max_bytes:,} bytes.")
            return bytes(data)
