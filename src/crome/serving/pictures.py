"""Pictures from strangers: data URIs, uploads and, where allowed, a URL; never a file's path."""

import base64
import binascii
import http.client
import io
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from PIL import Image, UnidentifiedImageError

from crome.errors import InputError
from crome.images import upright_rgb

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")  # what OpenAI's API takes; of an animation the first frame
MAX_SCANS = 100  # of a progressive JPEG; encoders write about ten
NAT64 = ipaddress.ip_network("64:ff9b::/96")


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


@dataclass(frozen=True)
class Pictures:
    """Opens pictures within limits.

    Attributes:
        max_bytes: Of one picture as it is sent.
        max_megapixels: Of one picture decoded.
        hosts: From which http(s) pictures may be fetched; none by default.
        timeout: Seconds for a whole fetch.
        may_connect: Which addresses an allowed host may resolve to.
    """

    max_bytes: int = 20 << 20
    max_megapixels: float = 25
    hosts: Collection[str] = ()
    timeout: float = 10
    may_connect: Callable[[str], bool] = is_public

    def open(self, url: str) -> Image.Image:
        """The picture behind a URL.

        Raises:
            InputError: It is no picture, too large, or somewhere that may not be asked.
        """
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            return self.decode(self._data(url))
        if scheme in ("http", "https"):
            return self.decode(self._fetch(url))
        raise InputError("image_url is neither a data: nor an http(s) URL.")

    def decode(self, data: bytes) -> Image.Image:
        """The picture in a file's bytes, as upright RGB; see `crome.images`."""
        if len(data) > self.max_bytes:
            raise InputError(f"the image has {len(data):,} bytes; at most {self.max_bytes:,}.")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                megapixels = opened.width * opened.height / 1e6
                if megapixels > self.max_megapixels:
                    raise InputError(
                        f"the image is {opened.width} × {opened.height}; expected at most "
                        f"{self.max_megapixels:g} megapixels. Scale it down first."
                    )
                # Each scan goes over all pixels and may have 40 bytes: hours of work in 20 MB.
                if opened.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > MAX_SCANS:
                    raise InputError(f"the image has more than {MAX_SCANS} scans.")
                return upright_rgb(opened, "the image")
        except InputError:
            raise
        except (UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise InputError(f"the image is not one of {', '.join(FORMATS)}.") from error
        # Decoders raise whatever a broken file makes them trip over (SyntaxError, struct.error, …).
        except Exception as error:
            raise InputError("the image cannot be decoded; it is damaged or cut off.") from error

    def _data(self, url: str) -> bytes:
        head, comma, body = url.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InputError("image_url is not of the form data:image/TYPE;base64,DATA.")
        if len(body) > self.max_bytes * 4 // 3 + 4:
            raise InputError(f"the image is too large; at most {self.max_bytes:,} bytes.")
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError("the data of image_url is not base64.") from error

    # ------------------------------------------------------------------ fetching

    def _fetch(self, url: str) -> bytes:
        """Gets a picture from an allowed host: one request, no redirects, bounded in every way."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError as error:
            raise InputError("image_url is not a valid URL.") from error
        if host not in self.hosts:
            raise InputError("image_url names a host that this server does not fetch from.")
        secure = parts.scheme.lower() == "https"
        port = port or (443 if secure else 80)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if any(c <= " " or c > "~" for c in path):
            raise InputError("image_url has characters that must be percent-encoded.")
        try:
            # The address that was checked is the one connected to, or a name could change between.
            sock = socket.create_connection((self._address(host, port), port), self.timeout)
            with sock:
                if secure:
                    sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
                return self._get(sock, host, port, path)
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"the image could not be fetched from {host}.") from error

    def _address(self, host: str, port: int) -> str:
        found = {str(i[4][0]) for i in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        if not found or not all(map(self.may_connect, found)):
            raise InputError("image_url names a host inside a private network.")
        return min(found)

    def _get(self, sock: socket.socket, host: str, port: int, path: str) -> bytes:
        late = threading.Event()

        def hang_up() -> None:  # a timeout of the socket would start again with every byte
            late.set()
            with suppress(OSError):  # it may just have ended
                sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self.timeout, hang_up)
        timer.start()
        try:
            connection = http.client.HTTPConnection(host, port)
            connection.sock = sock
            connection.request("GET", path, headers={"Accept": "image/*"})
            response = connection.getresponse()
            if response.status != 200:
                raise InputError(f"{host} answered {response.status} for the image.")
            data = response.read(self.max_bytes + 1)
        finally:
            timer.cancel()
            if late.is_set():
                raise InputError(f"the image took more than {self.timeout:g} s to fetch.")
        if len(data) > self.max_bytes:
            raise InputError(f"the image is too large; at most {self.max_bytes:,} bytes.")
        return data
