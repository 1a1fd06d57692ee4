"""Processes that prepare training data for another machine.

`python scripts/data_service.py dispatcher --port 5050` on one machine, and on each machine with cores to spare
`python scripts/data_service.py worker --config C --dispatcher host:5050 --host NAME`, then train with
`--set data.service=grpc://host:5050`. Workers need the same configuration and the same files as the training.
"""

from __future__ import annotations

import argparse

from kmaskformer import build_data
from kmaskformer.command_line.command import add_overrides, one_line_errors
from kmaskformer.config import load_config
from kmaskformer.data import service


def main() -> None:
    """Parse the arguments and serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    roles = parser.add_subparsers(dest="role", required=True)
    dispatcher = roles.add_parser("dispatcher", help="shares out the work; one for all")
    dispatcher.add_argument("--port", type=int, default=5050)
    worker = roles.add_parser("worker", help="reads and augments")
    worker.add_argument("--config", required=True, help="configuration of the training")
    add_overrides(worker)
    worker.add_argument("--dispatcher", required=True, metavar="HOST:PORT")
    worker.add_argument("--host", default="localhost", help="name under which this machine is reached")
    worker.add_argument("--port", type=int, default=0, help="port to listen on; any by default")
    arguments = parser.parse_args()
    with one_line_errors():
        server = _dispatcher(arguments) if arguments.role == "dispatcher" else _worker(arguments)
    server.join()


def _dispatcher(arguments: argparse.Namespace):
    server = service.start_dispatcher(arguments.port)
    print(f"dispatcher at {server.target}", flush=True)
    return server


def _worker(arguments: argparse.Namespace):
    config = load_config(arguments.config, arguments.set)
    reader = build_data.offer_reader(config.data)
    server = service.start_worker(arguments.dispatcher, arguments.host, arguments.port)
    print(f"worker for {arguments.dispatcher} with {len(reader)} images of {reader.info.name}", flush=True)
    return server


if __name__ == "__main__":
    main()
