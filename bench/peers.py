"""What Cove is measured against: the bare backend, and nginx in front of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 100000000;
  upstream backend {{ server 127.0.0.1:{backend}; keepalive 64; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], seconds: float = 15) -> None:
    """Until something accepts on `port`; an error if the process ends or time is up first."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} does not listen on {port}") from error
            time.sleep(0.005)


def stop(process: subprocess.Popen[bytes], seconds: float = 15) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def backend() -> Iterator[tuple[int, int]]:
    """The bare backend on a port of its own: (pid, port)."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(HERE / "backend" / "server.py")],
        env={**os.environ, "PORT": str(port)},
    )
    try:
        wait_for_port(port, process)
        yield process.pid, port
    finally:
        stop(process)


@contextmanager
def nginx(folder: Path, backend_port: int) -> Iterator[tuple[int, int]]:
    """nginx with one worker, keep-alive to the backend, no log: (pid of the master, port)."""
    port = free_port()
    folder.mkdir(parents=True)
    config = folder / "nginx.conf"
    text = NGINX.format(folder=folder, backend=backend_port, port=port)
    config.write_text(("user root;\n" if os.geteuid() == 0 else "") + text)
    process = subprocess.Popen(
        ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    )
    try:
        wait_for_port(port, process)
        yield process.pid, port
    finally:
        stop(process)
