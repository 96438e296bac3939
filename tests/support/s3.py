"""A real S3 server on loopback (moto's), which tests can stop and start again without losing a file."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

PORTS = range(24000, 26000)
# moto keeps objects in memory: a server that is "away" is one that answers nobody, so a proxy is what
# stops. `SERVER` listens on a free port; `PROXY` passes bytes on from the port that clients know.
PROXY = """
import asyncio, sys
async def pipe(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
async def serve(reader, writer):
    other_reader, other_writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(pipe(reader, other_writer), pipe(other_reader, writer))
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
"""


class S3:
    """`stop` and `start` take the server away and bring it back, with all that it had."""

    def __init__(self) -> None:
        inner, self.port = _free(2)
        self.inner = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(inner)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.inner_port, self.proxy = inner, None
        _answers(inner, self.inner)
        self.start()

    def start(self) -> None:
        if self.proxy is not None:
            return
        command = [sys.executable, "-c", PROXY, str(self.port), str(self.inner_port)]
        self.proxy: Any = subprocess.Popen(command)
        _answers(self.port, self.proxy)

    def stop(self) -> None:
        if self.proxy is not None:
            self.proxy.kill()
            self.proxy.wait()
            self.proxy = None

    def empty(self) -> None:
        """Nothing is there but the bucket `runs`, without an object."""
        reset = f"http://127.0.0.1:{self.inner_port}/moto-api/reset"
        urllib.request.urlopen(urllib.request.Request(reset, method="POST")).close()
        self.client().create_bucket(Bucket="runs")

    def close(self) -> None:
        self.stop()
        self.inner.kill()
        self.inner.wait()

    def url(self, path: str) -> str:
        at = f"127.0.0.1:{self.port}"
        return f"s3://{path}?region=us-east-1&scheme=http&endpoint_override={at}"

    def client(self) -> Any:
        import boto3

        at = f"http://127.0.0.1:{self.inner_port}"
        return boto3.client("s3", endpoint_url=at, region_name="us-east-1")

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        pages = (
            self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        )
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def empty_into(self, bucket: str, folder: Path) -> None:
        """Every object of a bucket as a file, for a search through their bytes."""
        for number, name in enumerate(self.names(bucket)):
            body = self.client().get_object(Bucket=bucket, Key=name)["Body"].read()
            (folder / str(number)).write_bytes(body)


def _free(count: int) -> list[int]:
    found: list[int] = []
    start = PORTS.start + os.getpid() % (len(PORTS) - 100)
    for port in range(start, PORTS.stop):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free port")


def _answers(port: int, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        assert process.poll() is None, "the server did not start"
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.1)
    raise AssertionError("the server does not answer")
