"""The page at the server's root: drop an image, look at its segments. All that it loads lies in `static/`."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).with_name("static")

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""The page may load its own files alone, and be shown in no other page."""


def page_routes() -> list[Route]:
    """Routes of the page and its files, which are read once."""
    files = {path.name: _answer(path) for path in FOLDER.iterdir() if path.is_file()}
    routes = [Route(f"/static/{name}", answer) for name, answer in files.items()]
    return [Route("/", files["index.html"]), *routes]


def _answer(path: Path):
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    kind = "text/javascript" if path.suffix == ".js" else kind  # some systems know another
    content = path.read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return answer
