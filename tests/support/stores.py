"""A local server that speaks the protocol of S3."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib import request

from moto.server import ThreadedMotoServer

BUCKET = "videos"


class Store:
    """A bucket on a local server.

    Attributes:
        environment: variables with which s3fs finds the server.
        client: a client of boto3.
    """

    def __init__(self, endpoint: str):
        import boto3

        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=BUCKET)

    def put(self, key: str, content: bytes | Path) -> None:
        body = content.read_bytes() if isinstance(content, Path) else content
        self.client.put_object(Bucket=BUCKET, Key=key, Body=body)

    def put_all(self, prefix: str, files: Mapping[str, bytes | Path]) -> str:
        """Upload files by name. Return the URL of the prefix."""
        for name, content in files.items():
            self.put(f"{prefix}/{name}", content)
        return f"s3://{BUCKET}/{prefix}"

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=key)


@contextmanager
def running_store() -> Iterator[Store]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    # All servers of a process share their contents.
    request.urlopen(request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    try:
        yield Store(endpoint)
    finally:
        server.stop()
