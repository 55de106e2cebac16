"""A small stand-in for NVIDIA Triton Inference Server: its HTTP protocol over ONNX Runtime.

It knows what the server would refuse: it reads config.pbtxt as the server's own message.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import tritonclient
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.utils import triton_to_np_dtype

Arrays = dict[str, NDArray[Any]]
LENGTH = "Inference-Header-Content-Length"


@cache
def messages() -> Any:
    """The server's configuration messages; its package for gRPC would need gRPC."""
    path = Path(tritonclient.__file__).parent / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_config(model: Path) -> Any:
    """config.pbtxt as a message; a field that the server does not know raises."""
    return text_format.Parse((model / "config.pbtxt").read_text(), messages().ModelConfig())


def datatype(tensor: Any) -> str:
    return messages().DataType.Name(tensor.data_type).removeprefix("TYPE_")


def session(model: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(model / "1" / "model.onnx"), providers=["CPUExecutionProvider"])


@contextmanager
def served(model: Path, spoil: Callable[[Arrays], Arrays] = lambda found: found) -> Iterator[str]:
    """Serve a model's folder; gives host:port. ``spoil`` changes the answers."""
    config, runtime = read_config(model), session(model)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                assert self.path == f"/v2/models/{config.name}/infer", self.path
                header, payload = answer(body, int(self.headers[LENGTH]))
                self.send_response(200)
            except Exception as error:
                header, payload = json.dumps({"error": str(error)}).encode(), b""
                self.send_response(400)
            self.send_header(LENGTH, str(len(header)))
            self.send_header("Content-Length", str(len(header) + len(payload)))
            self.end_headers()
            self.wfile.write(header + payload)

    def answer(body: bytes, split: int) -> tuple[bytes, bytes]:
        asked, at, feed = json.loads(body[:split]), split, {}
        for tensor in asked["inputs"]:
            size = tensor["parameters"]["binary_data_size"]
            flat = np.frombuffer(body[at : at + size], triton_to_np_dtype(tensor["datatype"]))
            feed[tensor["name"]], at = flat.reshape(tensor["shape"]), at + size
        assert [t.name for t in config.input] == list(feed)
        for tensor, given in zip(config.input, asked["inputs"], strict=True):
            assert given["datatype"] == datatype(tensor)
            assert given["shape"][1:] == list(tensor.dims)
            assert 1 <= given["shape"][0] <= config.max_batch_size
        names = [tensor["name"] for tensor in asked["outputs"]]
        found = spoil(dict(zip(names, runtime.run(names, feed), strict=True)))
        types = {tensor.name: datatype(tensor) for tensor in config.output}
        outputs = [
            {
                "name": name,
                "datatype": types[name],
                "shape": list(array.shape),
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in found.items()
        ]
        header = json.dumps({"model_name": config.name, "outputs": outputs}).encode()
        return header, b"".join(array.tobytes() for array in found.values())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
