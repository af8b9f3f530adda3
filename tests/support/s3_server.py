"""A real S3 server on loopback, moto's, which can be out of order for a while."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

ENV = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "s3sam/e+sesame",
       "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip


FAULTS = {"SlowDown": "503 Slow Down", "AccessDenied": "403 Forbidden"}


class S3:
    """bucket: an empty one. fault: every request is answered with it, where it is one of FAULTS."""

    bucket, fault = "bucket", ""

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.env = {**ENV, "AWS_ENDPOINT_URL": self.url}

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if self.fault:
            start(FAULTS[self.fault], [("Content-Type", "application/xml")])
            return [f"<Error><Code>{self.fault}</Code><Message>No.</Message></Error>".encode()]
        answer: Iterable[bytes] = self.app(environ, start)
        return answer

    def client(self) -> Any:
        return boto3.client(
            "s3", endpoint_url=self.url, region_name=ENV["AWS_DEFAULT_REGION"],
            aws_access_key_id=ENV["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ENV["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip


@contextmanager
def s3_server() -> Iterator[S3]:
    s3 = S3()
    thread = threading.Thread(target=s3.server.serve_forever)
    thread.start()
    try:
        s3.client().create_bucket(Bucket=s3.bucket)
        yield s3
    finally:
        s3.server.shutdown()
        thread.join()
