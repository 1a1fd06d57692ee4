"""The server's routes.

Starlette on uvicorn: both are maintained by their own team and used below FastAPI; Starlette is a thin layer of
routes over ASGI, which is all that is needed here. FastAPI would add validation of JSON against types, but the JSON
here is TensorFlow Serving's, and most bodies are images.

| route | answer |
|---|---|
| `POST /segment?model=&task=&format=json\\|png` | a picture (the body, or a form's file) to segments or an overlay |
| `POST /v1/models/NAME[/versions/V]:predict` | TensorFlow Serving's protocol |
| `GET /v1/models/NAME[/versions/V]`, `.../metadata` | its status and signatures |
| `GET /`, `GET /static/...` | a page to try the models in a browser; see `page.py` |
| `GET /models` | what the page needs to know: each model's task and classes, and the limits |
| `GET /healthz`, `GET /metrics` | for orchestration and Prometheus |
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kmaskformer import visualize
from kmaskformer.data.run_lengths import encode_mask
from kmaskformer.serving import predict_protocol
from kmaskformer.serving.batching import Batcher
from kmaskformer.serving.bodies import image_of, read_body
from kmaskformer.serving.errors import RequestError
from kmaskformer.serving.images import check_header, decode, too_large
from kmaskformer.serving.limits import Limits
from kmaskformer.serving.metrics import ServerMetrics
from kmaskformer.serving.model import ServedModel
from kmaskformer.serving.page import page_routes

log = logging.getLogger(__name__)

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

Handler = Callable[[Request], Awaitable[Response]]


class SegmentationServer:
    """Serves exported models over HTTP; `app` is the ASGI application.

    Args:
        models: What to serve; the first is the default of `/segment`.
        limits: The server's bounds.

    Raises:
        ValueError: If there is no model, or two have one name.
    """

    def __init__(self, models: Sequence[ServedModel], limits: Limits | None = None) -> None:
        self.models = {model.name: model for model in models}
        if not models or len(self.models) != len(models):
            raise ValueError(
                f"`models` must hold at least one model, and each name once. Received: {[m.name for m in models]}"
            )
        self.limits = limits or Limits()
        self.metrics = ServerMetrics()
        self.batchers = {name: self._make_batcher(model) for name, model in self.models.items()}
        self.metrics.pending.set_function(lambda: sum(batcher.pending for batcher in self.batchers.values()))
        unanswered = {404: self._no_route, 405: self._no_route}
        self.app = Starlette(routes=self._routes(), lifespan=self._lifespan, exception_handlers=unanswered)

    def _make_batcher(self, model: ServedModel) -> Batcher:
        observe = self.metrics.batches.labels(model.name).observe
        return Batcher(lambda images: model.run("serving_default", images), self.limits, observe)

    def _routes(self) -> list[Route]:
        routes = [
            *page_routes(),
            Route("/models", self._list_models),
            Route("/segment", self._guarded("segment", self._segment), methods=["POST"]),
            Route("/healthz", self._health),
            Route("/metrics", self._metrics),
        ]
        for base in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
            predict = self._guarded("predict", self._predict)
            routes += [
                Route(f"{base}/metadata", self._guarded("metadata", self._metadata)),
                Route(f"{base}:predict", predict, methods=_METHODS),
                Route(base, self._guarded("status", self._status)),
            ]
        return routes

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        for batcher in self.batchers.values():
            batcher.start()
        yield
        for batcher in self.batchers.values():
            await batcher.stop()

    def _guarded(self, route: str, handler: Handler) -> Handler:
        """Turns errors into answers and counts them; nothing that a request does ends the server."""

        async def answer(request: Request) -> Response:
            start = time.monotonic()
            try:
                response = await handler(request)
            except RequestError as error:
                response = _refusal(error.status, error.message)
            except Exception:
                log.exception("%s failed", route)
                response = _refusal(500, "The server failed on this request; its log says why.")
            self.metrics.requests.labels(route, response.status_code).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - start)
            return response

        return answer

    async def _no_route(self, request: Request, error: Exception) -> Response:
        """What Starlette refuses by itself: an address or method that no route has."""
        status = error.status_code
        what = "There is no such address" if status == 404 else f"This address does not take {request.method}"
        self.metrics.requests.labels("none", status).inc()
        response = _refusal(status, f"{what}. `/segment` and `/v1/models/NAME:predict` take POST requests.")
        response.headers.update(error.headers or {})
        return response

    async def _segment(self, request: Request) -> Response:
        model = self._choose_model(request)
        picture_format = _answer_format(request)
        body = await image_of(request, await read_body(request, self.limits))
        batcher = self.batchers[model.name]
        async with batcher.place():
            image = await asyncio.to_thread(decode, body, self.limits)
            outputs = await batcher.compute(image)
            describe = _overlay if picture_format == "png" else _describe
            return await asyncio.to_thread(describe, model, image, outputs)

    async def _predict(self, request: Request) -> Response:
        if request.method != "POST":  # otherwise the name would be looked up with its `:predict`
            raise RequestError(405, f"`:predict` takes POST requests. Received: {request.method}")
        model = self._named_model(request)
        body = await read_body(request, self.limits)
        batcher = self.batchers[model.name]
        async with batcher.place():
            name, values, by_row = await asyncio.to_thread(predict_protocol.read_request, body, model.signatures)
            await asyncio.to_thread(self._check_values, values)
            try:
                outputs = await batcher.call(model.run, name, values)
            except tf.errors.InvalidArgumentError as error:
                # What remains after the checks are files whose header is sound and whose pixels are not.
                if values.dtype != object:
                    raise
                raise RequestError(400, "An image cannot be read: it is damaged or incomplete.") from error
            content = await asyncio.to_thread(predict_protocol.write_response, outputs, by_row)
        return Response(content, media_type="application/json")

    def _check_values(self, values: np.ndarray) -> None:
        """Bounds what a predict request asks for, before its images are decoded."""
        height, width = values.shape[1:3] if values.dtype != object else self._largest(values)
        if max(height, width) > self.limits.image_side:
            raise too_large(self.limits, f"{width} x {height}")
        pixels = len(values) * height * width
        if pixels > self.limits.image_pixels:
            raise RequestError(
                413,
                f"A request may have {self.limits.image_pixels} pixels at most, each image counted as large as the "
                f"largest. Received: {pixels}. Send fewer images, or smaller ones.",
            )

    def _largest(self, files: np.ndarray) -> tuple[int, int]:
        images = [check_header(contents, self.limits) for contents in files]
        if any(image.format not in ("JPEG", "PNG") for image in images):
            raise RequestError(415, "`serve_encoded` reads JPEG and PNG files. Convert the image, or use /segment.")
        return max(image.height for image in images), max(image.width for image in images)

    async def _list_models(self, request: Request) -> Response:
        limits = {name: getattr(self.limits, name) for name in ("body_bytes", "image_pixels", "image_side")}
        return JSONResponse({"models": [model.describe() for model in self.models.values()], "limits": limits})

    async def _status(self, request: Request) -> Response:
        model = self._named_model(request)
        return JSONResponse(predict_protocol.describe_status(model.version, self.batchers[model.name].alive))

    async def _metadata(self, request: Request) -> Response:
        model = self._named_model(request)
        return JSONResponse(predict_protocol.describe_metadata(model.name, model.version, model.signatures))

    async def _health(self, request: Request) -> Response:
        alive = all(batcher.alive for batcher in self.batchers.values())
        return JSONResponse({"status": "ok" if alive else "stopping"}, 200 if alive else 503)

    async def _metrics(self, request: Request) -> Response:
        content, media_type = self.metrics.text()
        return Response(content, headers={"content-type": media_type})

    def _named_model(self, request: Request) -> ServedModel:
        model = self.models.get(request.path_params["name"])
        version = request.path_params.get("version")
        if model is None or version not in (None, model.version):
            known = ", ".join(f"{model.name} (version {model.version})" for model in self.models.values())
            raise RequestError(404, f"No such model or version. This server has: {known}")
        return model

    def _choose_model(self, request: Request) -> ServedModel:
        """The model that `?model=` or `?task=` names, or the first."""
        name, task = request.query_params.get("model"), request.query_params.get("task")
        for model in self.models.values():
            if name in (None, model.name) and task in (None, model.task):
                if not model.describes_segments:
                    raise RequestError(404, f"The model {model.name} was exported without the outputs for segments.")
                return model
        known = ", ".join(f"{model.name} ({model.task})" for model in self.models.values())
        raise RequestError(404, f"No such model or task. This server has: {known}")


def _answer_format(request: Request) -> str:
    """`"json"` or `"png"`, from the address or the header `Accept`."""
    wanted = request.query_params.get("format")
    if wanted is None:
        return "png" if "image/png" in request.headers.get("accept", "") else "json"
    if wanted not in ("json", "png"):
        raise RequestError(400, f"`format` must be json or png. Received: {wanted!r}")
    return wanted


def _describe(model: ServedModel, image: np.ndarray, outputs: dict[str, np.ndarray]) -> Response:
    """Size, task and segments with their masks."""
    segmentation, segments, masks = model.segments(outputs)
    colors = visualize.segment_colors(segments, model.info)
    described = []
    for index, segment in enumerate(segments):
        mask = segmentation == segment["id"] if masks is None else masks[index]
        described.append({**segment, "color": colors[index], "segmentation": encode_mask(mask)})
    height, width = image.shape[:2]
    return JSONResponse(
        {"model": model.name, "task": model.task, "height": height, "width": width, "segments": described}
    )


def _overlay(model: ServedModel, image: np.ndarray, outputs: dict[str, np.ndarray]) -> Response:
    segmentation, segments, masks = model.segments(outputs)
    buffer = io.BytesIO()
    visualize.overlay(image, segmentation, segments, model.info, masks=masks).save(buffer, "PNG", compress_level=3)
    return Response(buffer.getvalue(), media_type="image/png")


def _refusal(status: int, message: str) -> Response:
    headers: dict[str, Any] = {"retry-after": "1"} if status == 503 else {}
    if status in (408, 413):  # the rest of the body is not read
        headers["connection"] = "close"
    return JSONResponse({"error": message}, status, headers=headers)
