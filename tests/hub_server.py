"""A hub of four repositories on this machine: answers as the real one, prints what `resolve` made of it.

Run as a program, because huggingface_hub reads its address and switches when it is imported.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" * 6 + "c0ff"
CONFIG, WEIGHTS, TOKENIZER = b'{"model_type": "llama"}', b"weights", b"{}"
REPOSITORIES = {
    "org/whole": {
        "config.json": CONFIG,
        "model.safetensors": WEIGHTS,
        "model-00001-of-00001.safetensors": b"the same, in shards",
        "consolidated.safetensors": b"the same, once more",
        "pytorch_model.bin": b"pickle",
        "tokenizer.json": TOKENIZER,
        "modeling_own.py": b"print('remote code')",
        "step-1/config.json": CONFIG,
        "step-1/model.safetensors": b"earlier weights",
        "step-2/model.safetensors": b"not asked for",
    },
    "org/sharded": {
        "config.json": CONFIG,
        "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}',
        "model-00001-of-00001.safetensors": WEIGHTS,
        "consolidated.safetensors": b"the same, once more",
    },
    "org/pickled": {"config.json": CONFIG, "pytorch_model.bin": b"pickle"},
    "org/gated": {"config.json": CONFIG, "model.safetensors": WEIGHTS},
}


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):  # noqa: N802
        self.answer(body=False)

    def do_GET(self):  # noqa: N802
        self.answer(body=True)

    def answer(self, *, body: bool):
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        repository, rest = "/".join(parts[:2]), parts[2:]
        files = REPOSITORIES.get(repository)
        if files is None:
            return self.send(401, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        if repository == "org/gated" and not api:
            return self.send(403, b"{}", body, {"X-Error-Code": "GatedRepo"})
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in {"main", COMMIT}:
            return self.send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        if not api:
            content = files["/".join(rest[2:])]
            return self.send(200, content, body, {"ETag": f'"{hash_of(content)}"', "X-Repo-Commit": COMMIT})
        if rest[:1] == ["tree"]:
            tree = [{"type": "file", "path": f, "size": len(c), "oid": hash_of(c)} for f, c in files.items()]
            return self.send(200, json.dumps(tree).encode(), body, {})
        info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        return self.send(200, json.dumps(info).encode(), body, {})

    def send(self, status: int, content: bytes, body: bool, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def hash_of(content: bytes) -> str:
    import hashlib

    return hashlib.sha1(content).hexdigest()


def outcome(name: str, **where: str) -> dict:
    from mechinterp.hub import resolve

    started = time.monotonic()
    try:
        source = resolve(name, **where)
    except Exception as error:
        return {"error": type(error).__name__, "said": str(error), "seconds": time.monotonic() - started}
    root = source.tokenizer_path
    return {
        "commit": source.revision,
        "kind": source.kind,
        "files": sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()),
        "weights": next(source.path.glob("model*.safetensors")).read_text(),
    }


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ.update(
        HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HUB_OFFLINE="0", HF_HOME=sys.argv[1]
    )
    said = {
        "whole": outcome("org/whole"),
        "sharded": outcome("org/sharded"),
        "subfolder": outcome("org/whole@main:step-1"),
        "revision": outcome("org/whole", revision="gone"),
        "gated": outcome("org/gated"),
        "absent": outcome("org/absent"),
        "pickled": outcome("org/pickled"),
        "no subfolder": outcome("org/whole", subfolder="step-9"),
    }
    snapshot = next(Path(sys.argv[1]).rglob("models--org--whole/snapshots")) / COMMIT
    server.shutdown()
    server.server_close()
    said["cached"] = outcome("org/whole")
    said["cached commit"] = outcome(f"org/whole@{COMMIT}:step-1")
    (snapshot / "model.safetensors").unlink()
    said["incomplete"] = outcome("org/whole")
    print(json.dumps(said))


if __name__ == "__main__":
    main()
