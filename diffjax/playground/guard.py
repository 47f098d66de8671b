"""Which requests are answered: those of the page itself, with the token, and of bounded size.

The token is the first part of every address, so that the page's relative addresses have it and
no cookie is kept. A page of another origin has neither the token nor our Origin; a name that was
made to point here (DNS rebinding) has another Host.
"""

import hmac
import secrets
from collections.abc import Mapping
from typing import NamedTuple

LARGEST_BODY = 4 * 2**20
LONGEST_PATH = 8192

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Refusal(Exception):
    """A request that is not answered.

    Attributes:
      status: the HTTP status.
      line: what the body says.
    """

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


class Guard(NamedTuple):
    """The checks of a server.

    Attributes:
      token: the secret part of the address.
      port: of the server.
    """

    token: str
    port: int

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names by which the page may call this server."""
        return (f"127.0.0.1:{self.port}", f"localhost:{self.port}")

    def path(self, path: str, headers: Mapping[str, str]) -> str:
        """The path of a request below the token, without what follows "?".

        Raises:
          Refusal: 403 for another Host or Origin or token, 414 for a path that is too long.
        """
        if len(path) > LONGEST_PATH:
            raise Refusal(414, f"the address is longer than {LONGEST_PATH} letters")
        if headers.get("Host") not in self.hosts:
            raise Refusal(403, "this server is for 127.0.0.1 alone")
        origin = headers.get("Origin")
        if origin is not None and origin not in [f"http://{host}" for host in self.hosts]:
            raise Refusal(403, "only the playground's own page may ask")
        # What a browser says of requests without an Origin; "none" is the address bar.
        if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise Refusal(403, "only the playground's own page may ask")
        token, _, rest = path.partition("?")[0].lstrip("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            raise Refusal(403, "the address needs the token that the command printed")
        return rest

    def length(self, headers: Mapping[str, str]) -> int:
        """The number of bytes of a request's body.

        Raises:
          Refusal: 411 without a length, 413 for one that is too long, 415 for what is no JSON.
        """
        if headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            raise Refusal(415, "expected application/json")
        given = headers.get("Content-Length", "")
        if not (given.isascii() and given.isdecimal()):
            raise Refusal(411, "expected a Content-Length")
        if len(given) > 12 or int(given) > LARGEST_BODY:
            raise Refusal(413, f"the request is larger than {LARGEST_BODY // 2**20} MiB")
        return int(given)


def new_token() -> str:
    """A token that can't be guessed: 128 bits."""
    return secrets.token_urlsafe(16)
