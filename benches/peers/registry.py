"""A `docker-registry` on loopback with one image in it."""

import hashlib
import http.client
import json
import socket
import subprocess
import time
import urllib.parse
from pathlib import Path

READY_WITHIN_S = 20


class Registry:
    """A registry process over a storage directory; ends with the `with` block."""

    def __init__(self, storage, log):
        self.storage = Path(storage)
        self.port = free_port()
        self.storage.mkdir(parents=True, exist_ok=True)
        settings = self.storage.with_name(self.storage.name + ".json")  # YAML, of which JSON is a part
        settings.write_text(json.dumps({
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}},
            "http": {"addr": self.address, "relativeurls": True},
        }))
        self.log = open(log, "ab")
        self.process = subprocess.Popen(["docker-registry", "serve", settings], stdout=self.log, stderr=self.log)

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def __enter__(self):
        until = time.monotonic() + READY_WITHIN_S
        while self.process.poll() is None and time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.05)
        self.__exit__()
        raise SystemExit(f"docker-registry did not start within {READY_WITHIN_S} s: see {self.log.name}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.log.close()

    def push(self, layout, repository, tag):
        """Puts the one image of an OCI layout under a name, unless it is there."""
        layout = Path(layout)
        [top] = json.loads((layout / "index.json").read_text())["manifests"]
        manifest_bytes = blob(layout, top["digest"]).read_bytes()
        manifest = json.loads(manifest_bytes)
        for part in [manifest["config"], *manifest["layers"]]:
            if self.request("HEAD", f"/v2/{repository}/blobs/{part['digest']}").status != 200:
                self.upload(layout, repository, part)
        kind = {"Content-Type": top["mediaType"]}
        answer = self.request("PUT", f"/v2/{repository}/manifests/{tag}", manifest_bytes, kind)
        if answer.status != 201:
            raise SystemExit(f"the registry answered {answer.status} to the manifest")

    def upload(self, layout, repository, part):
        place = self.request("POST", f"/v2/{repository}/blobs/uploads/").getheader("Location")
        separator = "&" if urllib.parse.urlsplit(place).query else "?"
        target = f"{place}{separator}digest={urllib.parse.quote(part['digest'])}"
        with open(blob(layout, part["digest"]), "rb") as content:
            lengths = {"Content-Type": "application/octet-stream", "Content-Length": str(part["size"])}
            answer = self.request("PUT", target, content, lengths)
        if answer.status != 201:
            raise SystemExit(f"the registry answered {answer.status} to blob {part['digest']}")

    def request(self, method, target, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300, blocksize=1 << 20)
        connection.request(method, target, body, headers or {})
        answer = connection.getresponse()
        answer.body = answer.read()
        connection.close()
        return answer

    def manifest(self, repository, name):
        """The manifest of this tag or digest; of an index the first one in it."""
        kinds = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
        answer = self.request("GET", f"/v2/{repository}/manifests/{name}", headers={"Accept": kinds})
        document = json.loads(answer.body)
        return self.manifest(repository, document["manifests"][0]["digest"]) if "manifests" in document else document

    def push_small(self, repository, content):
        """Puts a small blob; gives its descriptor's digest and size."""
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        place = self.request("POST", f"/v2/{repository}/blobs/uploads/").getheader("Location")
        separator = "&" if urllib.parse.urlsplit(place).query else "?"
        answer = self.request("PUT", f"{place}{separator}digest={urllib.parse.quote(digest)}", content,
                              {"Content-Type": "application/octet-stream"})
        if answer.status != 201:
            raise SystemExit(f"the registry answered {answer.status} to blob {digest}")
        return {"digest": digest, "size": len(content)}

    def warm(self):
        """Reads what it stores, so that no run waits for the server's disk."""
        buffer = bytearray(1 << 20)
        for file in self.storage.rglob("data"):
            with open(file, "rb", buffering=0) as content:
                while content.readinto(buffer):
                    pass


def blob(layout, digest):
    return layout / "blobs" / digest.replace(":", "/")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
