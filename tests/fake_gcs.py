"""Google Cloud Storage in this process: TensorStore reaches it over HTTP, epath through fsspec in gcsfs's place.

As there, a folder is nothing but the beginning of names: an empty one does not exist.
"""

import contextlib
import dataclasses
import http.server
import io
import itertools
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import fsspec


@dataclasses.dataclass(frozen=True)
class Stored:
    data: bytes
    generation: int


class Bucket:
    """Objects by "bucket/name"; `writes` has every name as often as it was written."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.writes: list[str] = []
        self._generations = itertools.count(1)

    def put(self, name: str, data: bytes) -> Stored:
        self.writes.append(name)
        self.objects[name] = Stored(bytes(data), next(self._generations))
        return self.objects[name]


class FakeFileSystem(fsspec.AbstractFileSystem):
    """What epath asks of gcsfs."""

    protocol = ("gs", "gcs")
    cachable = False
    bucket = Bucket()

    def ls(self, path: str, detail: bool = True, **_: Any) -> list:
        path = self._strip_protocol(path).rstrip("/")
        found = {}
        for name, stored in sorted(self.bucket.objects.items()):
            if name == path:
                found[name] = {"name": name, "size": len(stored.data), "type": "file"}
            elif name.startswith(f"{path}/"):
                child, _, below = name[len(path) + 1 :].partition("/")
                entry = {"name": f"{path}/{child}", "size": 0, "type": "directory"}
                found.setdefault(
                    entry["name"], entry if below else entry | {"size": len(stored.data), "type": "file"}
                )
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path).rstrip("/")
        entries = self.ls(path)
        same = [entry for entry in entries if entry["name"] == path]
        return same[0] if same else {"name": path, "size": 0, "type": "directory"}

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        pass

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def rm_file(self, path: str) -> None:
        if self.bucket.objects.pop(self._strip_protocol(path), None) is None:
            raise FileNotFoundError(path)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        for name in self.find(path) if recursive else [path]:
            self.rm_file(name)

    def rmdir(self, path: str) -> None:
        pass

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        self.bucket.put(self._strip_protocol(path2), self.bucket.objects[self._strip_protocol(path1)].data)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        name = self._strip_protocol(path)
        if mode == "wb":
            return _Upload(self.bucket, name)
        assert mode == "rb", f"{mode}: objects are read whole and written whole"
        if name not in self.bucket.objects:
            raise FileNotFoundError(path)
        return io.BytesIO(self.bucket.objects[name].data)


class _Upload(io.BytesIO):
    """An object that is there once its writing has ended."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        super().__init__()
        self._finish = lambda: bucket.put(name, self.getvalue())

    def close(self) -> None:
        if not self.closed:
            self._finish()
        super().close()


def _handler(bucket: Bucket) -> type[http.server.BaseHTTPRequestHandler]:
    def describe(name: str) -> dict[str, str]:
        stored = bucket.objects[name]
        generation, size = str(stored.generation), str(len(stored.data))
        return {"name": name.partition("/")[2], "generation": generation, "metageneration": "1", "size": size}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def _answer(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        def _serve(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            where = re.fullmatch(r"(?:/upload)?/storage/v1/b/([^/]+)/o(?:/(.+))?", url.path)
            name = f"{where[1]}/{urllib.parse.unquote(where[2] or query.get('name', ''))}"
            now = bucket.objects.get(name)
            generation = str(now.generation) if now else "0"
            if query.get("ifGenerationMatch", generation) != generation:
                self._answer(412)
            elif self.command == "POST":
                bucket.put(name, body)
                self._answer(200, json.dumps(describe(name)).encode())
            elif where[2] is None:
                low, high = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
                keys = sorted(
                    key.partition("/")[2] for key in bucket.objects if key.startswith(f"{where[1]}/")
                )
                items = [describe(f"{where[1]}/{key}") for key in keys if low <= key < high]
                self._answer(200, json.dumps({"items": items}).encode())
            elif now is None:
                self._answer(404)
            elif self.command == "DELETE":
                del bucket.objects[name]
                self._answer(204)
            elif query.get("ifGenerationNotMatch") == generation:
                self._answer(304, x_goog_generation=generation)
            elif part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(part[1]), min(int(part[2] or 2**62), len(now.data) - 1)
                span = f"bytes {first}-{last}/{len(now.data)}"
                self._answer(
                    206, now.data[first : last + 1], Content_Range=span, x_goog_generation=generation
                )
            else:
                self._answer(200, now.data, x_goog_generation=generation)

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serve(bucket: Bucket) -> Iterator[dict[str, str]]:
    """Gives the environment variables by which TensorStore finds `bucket`; it reads them once a process."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(bucket))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        yield {"TENSORSTORE_GCS_HTTP_URL": url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}
    finally:
        server.shutdown()
        server.server_close()
