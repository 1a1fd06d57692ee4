"""Request bodies from clients that may be slow, silent or endless."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from kmaskformer.serving.errors import RequestError
from kmaskformer.serving.limits import Limits


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request.

    Raises:
        RequestError: 413 if it is too large, 408 if the client is too slow, 400 if it leaves.
    """
    try:
        async with asyncio.timeout(limits.upload_seconds):
            return await _read(request, limits)
    except TimeoutError as error:
        raise RequestError(408, "The request's body did not arrive in time. Send it again, faster.") from error
    except ClientDisconnect as error:
        raise RequestError(400, "The client left before its request was complete.") from error


async def image_of(request: Request, body: bytes) -> bytes:
    """The image file in a body: the body itself, or the first file of a form."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return body

    async def once() -> AsyncIterator[bytes]:
        yield body

    try:
        form = await MultiPartParser(request.headers, once(), max_files=4, max_fields=16).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise RequestError(400, f"The form cannot be read: {error}") from error
    try:
        for _, value in form.multi_items():
            if isinstance(value, UploadFile):
                return await value.read()
    finally:
        await form.close()
    raise RequestError(400, "The form holds no file. Send one, for example with curl -F image=@street.jpg")


async def _read(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    size = 0
    chunks = aiter(request.stream())
    while True:
        try:
            chunk = await asyncio.wait_for(anext(chunks), limits.idle_seconds)
        except StopAsyncIteration:
            break
        size += len(chunk)
        if size > 4 * limits.body_bytes:
            break
        # Beyond the limit the rest is read and forgotten: a client that still sends would not see the answer.
        if size <= limits.body_bytes:
            body += chunk
    if size > limits.body_bytes:
        raise RequestError(413, f"A request may have {limits.body_bytes} bytes at most. Send a smaller image.")
    return bytes(body)
