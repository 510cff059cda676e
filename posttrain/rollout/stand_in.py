"""A stand-in for a vLLM server: the part of its protocol that ``VLLMEngine`` speaks, on a CPU.

It draws with the library's own engine, so that completions are those of a run without servers, and
a set-up can be tried where there is neither vLLM nor a GPU::

    python -m posttrain.rollout.stand_in MODEL_FOLDER --port 8000

It is as strict as the real one where that has cost others days: weights that were loaded do not
count before the prefix cache is reset, a paused server draws nothing, and one that was started anew
does not know the version of its weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from posttrain.decoder_positions import most_positions
from posttrain.models import LanguageModel, load_model
from posttrain.rollout.batch import Sampling
from posttrain.rollout.engine import Engine
from posttrain.rollout.vllm_messages import seed_of

__all__ = ["StandIn"]

_LOADING = threading.Lock()
"""transformers loads one model at a time in a process: what it sets meanwhile is global."""
Answer = tuple[int, object]
"""HTTP's status, and what is sent as JSON."""


class StandIn:
    """Serves a copy of a model while its ``with`` block is open.

    Args:
        lm: What it serves at first.
        port: 0 takes one that is free.
    """

    def __init__(self, lm: LanguageModel, port: int = 0) -> None:
        self.model = copy.deepcopy(lm.model)
        self._cached = self.model
        self.version = "default"
        self.paused = False
        self.lock = threading.Lock()
        self.routes: dict[str, Callable[[dict[str, Any]], Answer]] = {
            "GET /health": lambda body: (200, {}),
            "GET /v1/models": self._models,
            "GET /weight_info": lambda body: (200, {"weight_version": self.version}),
            "POST /v1/completions": self._completions,
            "POST /pause": lambda body: self._pause(paused=True),
            "POST /resume": lambda body: self._pause(paused=False),
            "POST /collective_rpc": self._collective_rpc,
            "POST /reset_prefix_cache": self._reset_prefix_cache,
            "POST /update_weight_version": self._update_weight_version,
        }
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.stand_in = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self) -> None:
        """Serve in this thread, until it is interrupted."""
        self._server.serve_forever()

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        """Return what is answered to a request; its query is not looked at."""
        route = self.routes.get(f"{method} {path.partition('?')[0]}")
        if route is None:
            return 404, {"detail": "Not Found"}
        try:
            with self.lock:
                return route(body)
        except Exception as error:  # as a server does, which goes on
            return 500, {"error": {"message": f"{type(error).__name__}: {error}"}}

    def _models(self, body: dict[str, Any]) -> Answer:
        longest = most_positions(self.model.config)
        return 200, {"data": [{"id": "policy", "max_model_len": longest}]}

    def _completions(self, body: dict[str, Any]) -> Answer:
        if self.paused:
            return 503, {"error": {"message": "generation is paused"}}
        if body["model"] != "policy":
            return 404, {"error": {"message": f"The model {body['model']!r} does not exist."}}
        if body["temperature"] == 0 and body["n"] > 1:
            return 400, {"error": {"message": "n must be 1 when using greedy sampling"}}
        sampling = Sampling(
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_k=body["top_k"],
            top_p=body["top_p"],
            stop_tokens=tuple(body["stop_token_ids"]),
        )
        engine = Engine(self._cached)
        drawn = engine.generate(
            [body["prompt"]], sampling, body["n"], seeds=[seed_of(body["seed"])]
        )
        choices = [
            {
                "index": g,
                "text": "",
                "finish_reason": drawn.finish_reasons[g],
                "token_ids": tokens,
                "prompt_token_ids": body["prompt"],
                "logprobs": {
                    "token_logprobs": drawn.old_log_probs[g][drawn.mask[g]].tolist(),
                    "tokens": [f"token_id:{token}" for token in tokens],
                },
            }
            for g, tokens in enumerate(drawn.completions())
        ]
        return 200, {"object": "text_completion", "model": "policy", "choices": choices}

    def _pause(self, *, paused: bool) -> Answer:
        self.paused = paused
        return 200, {"status": "paused" if paused else "resumed"}

    def _collective_rpc(self, body: dict[str, Any]) -> Answer:
        if body["method"] != "reload_weights":
            return 500, {"error": {"message": f"no method {body['method']}"}}
        with _LOADING:
            found = load_model(body["kwargs"]["weights_path"]).model
        self._cached = copy.deepcopy(self.model)  # whose keys and values prompts still find
        self.model.load_state_dict(found.state_dict())
        return 200, {"results": [None]}

    def _reset_prefix_cache(self, body: dict[str, Any]) -> Answer:
        self._cached = self.model
        return 200, None

    def _update_weight_version(self, body: dict[str, Any]) -> Answer:
        self.version = body["new_version"]
        return 200, {"success": True, "new_version": self.version}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    stand_in: StandIn


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._reply("GET", {})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._reply("POST", json.loads(text or b"{}"))

    def _reply(self, method: str, body: dict[str, Any]) -> None:
        status, found = self.server.stand_in.answer(method, self.path, body)
        data = b"" if found is None else json.dumps(found).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client has gone
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of single requests."""


def _main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of a model, as monro or transformers save it")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    stand_in = StandIn(load_model(given.folder), given.port)
    print(f"serving {given.folder} at {stand_in.url}", flush=True)
    stand_in.serve()


if __name__ == "__main__":
    _main()
