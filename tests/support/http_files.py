"""A loopback HTTP server that serves a folder, honours Range, and can be slow or cut a transfer."""

import http.server
import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote


class Served:
    """What a server is told and what it has seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.cut_after: int | None = None  # bytes after which each transfer ends
        self.pause_s = 0.0  # after every 64 KiB
        self.ranges = True

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"


@contextmanager
def serve(folder: Path):
    served = Served(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            served.requests.append((self.path, wanted))
            path = served.folder / unquote(self.path).strip("/")
            path = path / "index.html" if path.is_dir() else path
            if not path.is_file():
                self.send_error(404)
                return
            self._send(path, wanted if served.ranges else None)

        def _send(self, path, wanted):
            data = path.read_bytes()
            start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
            if start and start >= len(data):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Type", "text/html" if path.suffix == ".html" else "x/y")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self._send_slowly(data[start:], cut=path.suffix != ".html")

        def _send_slowly(self, data, cut):
            stop = served.cut_after if cut and served.cut_after is not None else len(data)
            try:
                for at in range(0, min(stop, len(data)), 1 << 16):
                    self.wfile.write(data[at : min(at + (1 << 16), stop)])
                    self.wfile.flush()
                    time.sleep(served.pause_s)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client was killed: what the test is about

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
