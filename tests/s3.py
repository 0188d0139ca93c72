"""An S3 server on loopback for tests, which this process and those it starts talk to."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from unittest import mock

import boto3
import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The server's address, which the environment names for as long as it runs; it has the bucket BUCKET."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = make_server("127.0.0.1", port, DomainDispatcherApplication(create_backend_app), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    try:
        with mock.patch.dict(os.environ, environment):
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            # File systems are kept, with their address, for as long as a process lives.
            s3fs.S3FileSystem.clear_instance_cache()
            yield address
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()
        thread.join()
        server.server_close()
