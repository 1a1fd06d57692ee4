"""Serve exported models: `python scripts/serve.py --model out/saved_model`, then

curl --data-binary @street.jpg 'http://127.0.0.1:8501/segment?format=png' --output street_overlay.png
"""

from __future__ import annotations

import argparse
import sys

try:
    from kmaskformer.serving.app import SegmentationServer
    from kmaskformer.serving.limits import Limits
    from kmaskformer.serving.model import ServedModel
    from kmaskformer.serving.server import make_server
except ModuleNotFoundError as missing:
    sys.exit(f"error: serving needs {missing.name}. Install it: pip install 'kmaskformer[serve]'")


def main() -> None:
    """Parse the arguments and serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(
        description="Serve SavedModels of scripts/export.py over HTTP: POST /segment with an image file, and the REST "
        "protocol of TensorFlow Serving. Needs the extra `serve`."
    )
    parser.add_argument(
        "--model", action="append", required=True, help="[NAME=]FOLDER of an export; may be given several times"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all networks")
    parser.add_argument("--port", type=int, default=8501, help="0 for any that is free")
    defaults = Limits()
    parser.add_argument("--max-pixels", type=int, default=defaults.image_pixels, help="largest image, in pixels")
    parser.add_argument("--max-bytes", type=int, default=defaults.body_bytes, help="largest request, in bytes")
    parser.add_argument("--max-pending", type=int, default=defaults.pending, help="requests at a time; 503 beyond")
    parser.add_argument("--max-batch", type=int, default=defaults.batch_images, help="images computed at once")
    arguments = parser.parse_args()
    try:
        limits = Limits(
            image_pixels=arguments.max_pixels,
            body_bytes=arguments.max_bytes,
            pending=arguments.max_pending,
            batch_images=arguments.max_batch,
        )
        server = SegmentationServer([_load(argument) for argument in arguments.model], limits)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    uvicorn_server = make_server(server, arguments.host, arguments.port)
    socket = uvicorn_server.config.bind_socket()
    socket.listen()  # from here on clients may come
    names = ", ".join(f"{model.name} ({model.task})" for model in server.models.values())
    print(f"serving {names} on http://{arguments.host}:{socket.getsockname()[1]}", flush=True)
    uvicorn_server.run(sockets=[socket])


def _load(argument: str) -> ServedModel:
    name, separator, folder = argument.partition("=")
    model = ServedModel(folder, name) if separator else ServedModel(argument)
    model.warm_up()
    return model


if __name__ == "__main__":
    main()
