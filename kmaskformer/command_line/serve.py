"""`kmaskformer serve`, `scripts/serve.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kmaskformer.command_line.command import make_parser, one_line_errors
from kmaskformer.extras import missing_extra
from kmaskformer.serving.limits import Limits

if TYPE_CHECKING:
    from kmaskformer.serving.app import SegmentationServer
    from kmaskformer.serving.model import ServedModel

DESCRIPTION = """\
Serve SavedModels of `kmaskformer export` over HTTP until SIGINT or SIGTERM. At the root is a page to try them in a
browser; POST /segment takes an image file and answers JSON or a PNG overlay; /v1/models/NAME:predict speaks the REST
protocol of TensorFlow Serving; /healthz and /metrics are for orchestration. Needs the extra `serve`."""

EXAMPLES = """\
  kmaskformer serve --model out/saved_model                # then open http://127.0.0.1:8501
  kmaskformer serve --model panoptic=out/panoptic --model semantic=out/semantic --port 9000
  curl --data-binary @street.jpg 'http://127.0.0.1:8501/segment?format=png' --output street_overlay.png"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and serve until SIGINT or SIGTERM."""
    options = _parse(arguments)
    limits = {
        "image_pixels": options.max_pixels,
        "image_side": options.max_side,
        "body_bytes": options.max_bytes,
        "pending": options.max_pending,
        "batch_images": options.max_batch,
    }
    with one_line_errors():
        server, uvicorn_server = _make_servers(options, Limits(**limits))
        socket = uvicorn_server.config.bind_socket()
    socket.listen()  # from here on clients may come
    names = ", ".join(f"{model.name} ({model.task})" for model in server.models.values())
    print(f"serving {names} on http://{options.host}:{socket.getsockname()[1]}", flush=True)
    uvicorn_server.run(sockets=[socket])
    return 0


def _parse(arguments: Sequence[str] | None) -> Any:
    parser: argparse.ArgumentParser = make_parser("serve", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "--model", action="append", required=True, help="[NAME=]FOLDER of an export; may be given several times"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all networks")
    parser.add_argument("--port", type=int, default=8501, help="0 for any that is free")
    defaults = Limits()
    parser.add_argument("--max-pixels", type=int, default=defaults.image_pixels, help="largest image, in pixels")
    parser.add_argument("--max-side", type=int, default=defaults.image_side, help="longest side of an image, in pixels")
    parser.add_argument("--max-bytes", type=int, default=defaults.body_bytes, help="largest request, in bytes")
    parser.add_argument("--max-pending", type=int, default=defaults.pending, help="requests at a time; 503 beyond")
    parser.add_argument("--max-batch", type=int, default=defaults.batch_images, help="images computed at once")
    parsed = parser.parse_args(arguments)
    if not 0 <= parsed.port < 2**16:
        parser.error(f"--port must be a number from 0 to 65535. Received: {parsed.port}")
    return parsed


def _make_servers(options: argparse.Namespace, limits: Limits) -> tuple[SegmentationServer, Any]:
    """The application with its models, and uvicorn's server around it."""
    try:  # only now, so that those without the extra can read the help
        from kmaskformer.serving.app import SegmentationServer
        from kmaskformer.serving.server import make_server
    except ImportError as error:
        raise missing_extra("serve", "Serving", error) from error
    server = SegmentationServer([_load(argument) for argument in options.model], limits)
    return server, make_server(server, options.host, options.port)


def _load(argument: str) -> ServedModel:
    from kmaskformer.serving.model import ServedModel

    name, separator, folder = argument.partition("=")
    # A folder's own name may have an equals sign, a model's name no slash.
    model = ServedModel(folder, name) if separator and "/" not in name else ServedModel(argument)
    model.warm_up()
    return model
