"""As much of Google Cloud Storage's JSON API as gcsfs, TensorStore and ArrayRecord use, in memory, on loopback."""

import base64
import hashlib
import json
import re
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Emulator:
    """A server with buckets that exist as soon as they are named. `objects`: (bucket, name) to content."""

    def __init__(self):
        self.objects: dict[tuple[str, str], bytes] = {}
        self.generations: dict[tuple[str, str], int] = {}
        self.requests: list[str] = []
        self.uploads: dict[str, tuple[str, str, bytearray]] = {}
        self.lock = threading.Lock()
        self._counter = 0
        emulator = self

        class Handler(_Handler):
            store = emulator

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What tells each library where the storage is, and that it needs no credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks another service, over gRPC, about each bucket
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",  # TensorStore
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,  # the C++ library in ArrayRecord
        }

    def put(self, bucket: str, name: str, data: bytes) -> dict:
        with self.lock:
            self._counter += 1
            self.objects[bucket, name] = bytes(data)
            self.generations[bucket, name] = self._counter
        return self.describe(bucket, name)

    def describe(self, bucket: str, name: str) -> dict:
        data, generation = self.objects[bucket, name], str(self.generations[bucket, name])
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{generation}",
            "bucket": bucket,
            "name": name,
            "size": str(len(data)),
            "generation": generation,
            "metageneration": "1",
            "etag": generation,
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client may go away before it has its answer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    store: Emulator
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def _dispatch(self):
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        self.store.requests.append(f"{self.command} {self.path}")
        self.body = self._read_body()
        path = re.sub(r"^/(download/)?", "/", url.path)
        for method, pattern, handler in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command == method:
                return handler(self, *map(urllib.parse.unquote, match.groups()))
        return self._reply(501, {"error": {"code": 501, "message": f"not emulated: {self.command} {self.path}"}})

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = _dispatch

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _reply(self, status: int, content: dict | bytes = b"", headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in ({"Content-Type": kind} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _missing(self, what: str) -> None:
        self._reply(404, {"error": {"code": 404, "message": f"{what} Not Found"}})

    def _precondition_fails(self, bucket: str, name: str) -> bool:
        wanted = self.query.get("ifGenerationMatch")
        if wanted is None or int(wanted) == self.store.generations.get((bucket, name), 0):
            return False
        self._reply(412, {"error": {"code": 412, "message": "Precondition Failed"}})
        return True

    def bucket(self, bucket: str) -> None:
        self._reply(200, {"kind": "storage#bucket", "id": bucket, "name": bucket, "location": "US"})

    def layout(self, bucket: str) -> None:
        self._reply(
            200, {"kind": "storage#storageLayout", "bucket": bucket, "hierarchicalNamespace": {"enabled": False}}
        )

    def list_objects(self, bucket: str) -> None:
        """All names on one page."""
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        start, end = self.query.get("startOffset", ""), self.query.get("endOffset", "")
        items, prefixes = [], []
        for owner, name in sorted(self.store.objects):
            if owner != bucket or not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                inner = prefix + rest.split(delimiter)[0] + delimiter
                prefixes += [] if inner in prefixes else [inner]
            else:
                items.append(self.store.describe(bucket, name))
        most = int(self.query.get("maxResults", 10**9))
        self._reply(200, {"kind": "storage#objects", "items": items[:most], "prefixes": prefixes})

    def get(self, bucket: str, name: str) -> None:
        data = self.store.objects.get((bucket, name))
        if data is None:
            return self._missing(f"{bucket}/{name}")
        if self.query.get("alt") != "media":
            return self._reply(200, self.store.describe(bucket, name))
        return self._content(bucket, name, data)

    def media(self, bucket: str, name: str) -> None:
        """The XML API's way to the same content."""
        data = self.store.objects.get((bucket, name))
        return self._missing(f"{bucket}/{name}") if data is None else self._content(bucket, name, data)

    def _content(self, bucket: str, name: str, data: bytes) -> None:
        generation = str(self.store.generations[bucket, name])
        headers = {"x-goog-generation": generation, "x-goog-stored-content-length": str(len(data)), "ETag": generation}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._reply(200, data, headers)
        first, last = wanted.groups()
        start = int(first) if first else max(len(data) - int(last), 0)
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            return self._reply(416, {"error": {"code": 416, "message": "Range Not Satisfiable"}})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return self._reply(206, data[start:stop], headers)

    def _parts(self) -> list[bytes]:
        """Heads and contents of a multipart body."""
        boundary = re.search(r'boundary=["\']?([^"\';]+)', self.headers["Content-Type"])[1]
        parts = self.body.split(f"--{boundary}".encode())[1:-1]
        return [re.sub(rb"\r?\n\Z", b"", part) for part in parts]

    def upload(self, bucket: str) -> None:
        kind = self.query["uploadType"]
        if "upload_id" in self.query:
            return self.resume(bucket)
        if kind == "media":
            name, data = self.query["name"], self.body
        elif kind == "multipart":
            about, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in self._parts()[:2])
            name = json.loads(about).get("name") or self.query["name"]
        else:
            about = json.loads(self.body or b"{}")
            name = about.get("name") or self.query["name"]
            session = hashlib.md5(f"{bucket}/{name}/{len(self.store.uploads)}".encode()).hexdigest()
            self.store.uploads[session] = (bucket, name, bytearray())
            return self._reply(200, {}, {"Location": f"{self.store.url}{self.path}&upload_id={session}"})
        if self._precondition_fails(bucket, name):
            return None
        return self._reply(200, self.store.put(bucket, name, data))

    def resume(self, bucket: str) -> None:
        """One piece of a resumable upload: `Content-Range: bytes 0-9/10`, with `*` for a size not known yet."""
        bucket, name, received = self.store.uploads[self.query["upload_id"]]
        received += self.body
        total = self.headers.get("Content-Range", "*/*").rpartition("/")[2]
        if total.isdigit() and len(received) < int(total) or total == "*" and self.body:
            return self._reply(308, b"", {"Range": f"bytes=0-{len(received) - 1}"})
        return self._reply(200, self.store.put(bucket, name, received))

    def delete(self, bucket: str, name: str) -> None:
        if (bucket, name) not in self.store.objects:
            return self._missing(f"{bucket}/{name}")
        with self.store.lock:
            del self.store.objects[bucket, name], self.store.generations[bucket, name]
        return self._reply(204)

    def copy(self, bucket: str, name: str, to_bucket: str, to_name: str) -> None:
        if (bucket, name) not in self.store.objects:
            return self._missing(f"{bucket}/{name}")
        data = self.store.objects[bucket, name]
        size = str(len(data))
        resource = self.store.put(to_bucket, to_name, data)
        return self._reply(200, {"done": True, "objectSize": size, "totalBytesRewritten": size, "resource": resource})

    def move(self, bucket: str, name: str, to_name: str) -> None:
        if (bucket, name) not in self.store.objects:
            return self._missing(f"{bucket}/{name}")
        resource = self.store.put(bucket, to_name, self.store.objects[bucket, name])
        with self.store.lock:
            del self.store.objects[bucket, name], self.store.generations[bucket, name]
        return self._reply(200, resource)

    def batch(self) -> None:
        """Deletions that come together."""
        boundary, answers = "answers", b""
        for part in self._parts():
            found = re.search(rb"DELETE (?:https?://[^/]+)?/storage/v1/b/([^/]+)/o/(\S+)", part)
            key = tuple(urllib.parse.unquote(group.decode()) for group in found.groups())
            there = self.store.objects.pop(key, None) is not None
            self.store.generations.pop(key, None)
            status = "204 No Content" if there else "404 Not Found"
            answers += f"--{boundary}\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status}\r\n\r\n\r\n".encode()
        kind = {"Content-Type": f"multipart/mixed; boundary={boundary}"}
        self._reply(200, answers + f"--{boundary}--".encode(), kind)


_O = r"/storage/v1/b/([^/]+)/o/([^/]+)"
_ROUTES = (
    ("GET", r"/storage/v1/b/([^/]+)", _Handler.bucket),
    ("GET", r"/storage/v1/b/([^/]+)/storageLayout", _Handler.layout),
    ("GET", r"/storage/v1/b/([^/]+)/o", _Handler.list_objects),
    ("GET", _O, _Handler.get),
    ("DELETE", _O, _Handler.delete),
    ("POST", r"/upload/storage/v1/b/([^/]+)/o", _Handler.upload),
    ("PUT", r"/upload/storage/v1/b/([^/]+)/o", _Handler.resume),
    ("POST", _O + r"/(?:copyTo|rewriteTo)/b/([^/]+)/o/([^/]+)", _Handler.copy),
    ("POST", _O + r"/moveTo/o/([^/]+)", _Handler.move),
    ("POST", r"/batch/storage/v1", _Handler.batch),
    ("GET", r"/([^/]+)/(.+)", _Handler.media),
    ("HEAD", r"/([^/]+)/(.+)", _Handler.media),
)
