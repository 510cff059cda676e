"""Completions from vLLM servers, on this machine or others, that are given each new policy.

Written for ``vllm serve`` with ``VLLM_SERVER_DEV_MODE=1``, of a version whose server knows the
version of its weights (``GET /weight_info``, vLLM's pull request 49040 of July 2026). Nothing of
vLLM is imported. What is called, and why:

==============================  ====================================================================
``GET /v1/models``              the name under which the model is served, and its longest sequence
``POST /v1/completions``        one prompt's group: token ids in and out, log-probs of the sampled
``POST /pause``, ``/resume``    no completion is under way while the weights change
``POST /collective_rpc``        ``reload_weights(weights_path=...)``, on every worker
``POST /reset_prefix_cache``    or prompts would go on with keys and values of the old weights
``POST /update_weight_version`` names the new weights once they are in place
``GET /weight_info``            the name again: a server that was started anew does not have it
==============================  ====================================================================

Weights travel as safetensors through a folder that the trainer and the servers share. vLLM's NCCL
transfer (``/init_weight_transfer_engine``, ``/update_weights``), which needs vLLM in the trainer
and GPUs on both sides, is not had; nor are quantized servers, whose weights differ from the policy.
"""

from __future__ import annotations

import math
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launch.config import resumable
from launch.errors import UsageError
from launch.runtime import Runtime
from posttrain.adapters import merge_adapters
from posttrain.decoder_positions import most_positions
from posttrain.models import LanguageModel, save_model
from posttrain.rollout.batch import Rollout, Sampling
from posttrain.rollout.calls import Calls, Refused
from posttrain.rollout.engine import _as_rows, _assembled, _group_size, _seeds
from posttrain.rollout.vllm_messages import Drawn, as_completions, read_answer, request_of

__all__ = ["VLLM", "VLLMEngine", "write_weights"]

_LEAST_TEMPERATURE = 0.01
"""vLLM takes lower ones for this, or for 0."""
_URL = re.compile(r"https?://[^/:\s]+(:\d{1,5})?(/\S*)?")
_START = "docs/how-to/rollouts-on-servers.md says how to start one"


@dataclass(frozen=True, kw_only=True, slots=True)
class VLLM:
    """vLLM servers that draw the completions, and the folder through which they get the weights."""

    urls: tuple[str, ...] = field(metadata={"resumable": True})
    """Such as ``http://node-7:8000``. Each serves the whole model and takes its share."""
    folder: str = field(metadata={"resumable": True})
    """Where weights are put for the servers: this run's alone, on a file system that the main
    process and all servers see under this same absolute path. The newest weights stay there."""
    connect_seconds: float = resumable(10.0)
    """Limit of connecting to a server."""
    seconds: float = resumable(600.0)
    """Limit of one prompt's group of completions, waiting for its turn included."""
    push_seconds: float = resumable(600.0)
    """Limit of each call while new weights are loaded."""
    retries: int = resumable(3)
    """Further tries after a lost connection or a busy server, after .5, 1, 2 ... seconds."""
    at_once: int = resumable(64)
    """Prompts that each process has under way."""

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("rollouts.urls is empty: give a server, such as http://localhost:8000")
        for url in self.urls:
            if not _URL.fullmatch(url):
                raise ValueError(f"rollouts.urls: {url!r} is no URL such as http://node-7:8000")
        if not Path(self.folder).is_absolute():
            raise ValueError(
                f"rollouts.folder={self.folder!r}: give an absolute path that the trainer and the "
                "servers share"
            )
        for name in ("connect_seconds", "seconds", "push_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"rollouts.{name}={getattr(self, name)}: give a positive limit")
        if self.retries < 0 or self.at_once < 1:
            raise ValueError(
                f"rollouts.retries={self.retries}, rollouts.at_once={self.at_once}: give at least "
                "0 and 1"
            )


class VLLMEngine:
    """Draws completions on servers; ``push`` gives them the policy. It stands where engines do.

    Token-in, token-out, with the log-prob of each sampled token as the server computed it, at the
    server's precision: how far that is from the trainer is logged as ``mismatch``. A completion is
    keyed by its prompt's seed and its place in the group; vLLM keeps it the same beside others up
    to rounding, so another batch may still change a token.

    Every process asks for its own rows. ``push`` is called by all together.

    Args:
        servers: Where, and within which limits.
        lm: The policy, with adapters or without.
        run: Its main process pushes.

    Raises:
        UsageError: On every process: a server is not there or is no such vLLM server.
    """

    def __init__(self, servers: VLLM, lm: LanguageModel, run: Runtime) -> None:
        self.servers, self.lm, self.run = servers, lm, run
        self._urls = [url.rstrip("/") for url in servers.urls]
        self._calls = Calls(servers.connect_seconds, servers.retries, servers.at_once)
        self._names: dict[str, str] = {}
        self._most = most_positions(lm.model.config)
        self._run_name = run.gather_objects([uuid.uuid4().hex[:12]])[0]
        self._version: int | None = None
        run.backend.on_all(self._meet)

    # -- weights -----------------------------------------------------------------------------

    def push(self, version: int) -> None:
        """Give all servers the policy as it is, once for each version; all processes together.

        No process may have completions under way. Beneath a strategy that shards the weights, call
        it where the model is whole.

        Args:
            version: The updates that the policy has seen.

        Raises:
            UsageError: On every process: the weights could not be written, or a server did not
                take them. Such a server stays paused, for it may hold the weights in part.
        """
        if version == self._version:
            return
        self.run.gather_objects([version])  # until then others may still be sampling
        self.run.on_main(partial(self._push, version))
        self._version = version

    def _push(self, version: int) -> None:
        root, name = Path(self.servers.folder), self._name(version)
        folder = root / f"weights-{name}"  # a new one each time: vLLM maps the files into memory
        root.mkdir(parents=True, exist_ok=True)
        write_weights(self.lm, folder)
        self._calls.together([partial(self._load, url, folder, name) for url in self._urls])
        for old in root.glob("weights-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)

    def _load(self, url: str, folder: Path, name: str) -> None:
        """Make one server take the weights; may be done again."""
        limit = self.servers.push_seconds
        reload: dict[str, object] = {
            "method": "reload_weights",
            "kwargs": {"weights_path": str(folder), "is_checkpoint_format": True},
            "timeout": limit,
        }
        self._calls.call(url, "/pause?mode=abort", {}, seconds=limit)
        try:
            self._calls.call(url, "/collective_rpc", reload, seconds=limit)
        except Refused as error:
            raise UsageError(
                f"{error}; it could not load the weights: see that it serves this same model, not "
                f"quantized, and can read {folder}"
            ) from None
        self._calls.call(url, "/reset_prefix_cache", {}, seconds=limit)
        self._calls.call(url, "/update_weight_version", {"new_version": name}, seconds=limit)
        self._calls.call(url, "/resume", {}, seconds=limit)

    def _name(self, version: int) -> str:
        """A name that no other run, and no earlier start of this one, gives its weights."""
        return f"{self._run_name}-{version}"

    def _check_version(self, url: str) -> None:
        assert self._version is not None
        expected = self._name(self._version)
        found = self._calls.call(url, "/weight_info", seconds=self.servers.seconds)
        found = found.get("weight_version") if isinstance(found, dict) else found
        if found != expected:
            raise UsageError(
                f"{url} holds weights {found!r}, not {expected!r} that it was given: it was "
                "started anew, or another run uses it; give each run servers of its own and go on "
                "with --resume"
            )

    # -- completions -------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        group_size: int = 1,
        *,
        seeds: Sequence[int] | None = None,
    ) -> Rollout:
        """Sample ``group_size`` completions of each prompt, as ``Engine.generate`` does.

        ``old_log_probs`` are the server's, untempered. At a temperature that is neither 1 nor 0
        the tempered ones are not known and are NaN: enough to judge answers, not to train on.

        Args:
            prompts: P sequences of token ids, none of them empty.
            sampling: Temperature, top-k, top-p, stop tokens, the most tokens.
            group_size: G.
            seeds: One integer a prompt; 0, 1, ... by default.

        Raises:
            UsageError: A server is lost, late, has older weights, or answers with something else.
        """
        if self._version is None:
            raise UsageError("the servers have no weights yet: call push first, on all processes")
        vocabulary = self.lm.model.config.get_text_config().vocab_size
        rows = _as_rows(prompts, sampling.max_tokens, vocabulary, self._most)
        group_size, keys = _group_size(group_size), _seeds(seeds, len(rows))
        if 0 < sampling.temperature < _LEAST_TEMPERATURE:
            raise UsageError(
                f"sampling.temperature={sampling.temperature}: vLLM has none between 0 and "
                f"{_LEAST_TEMPERATURE}; use 0 for greedy"
            )
        stops = {token for token in sampling.stop_tokens if 0 <= token < vocabulary}
        tasks: list[Callable[[], list[Drawn]]] = []
        used: set[str] = set()
        for p, (row, seed) in enumerate(zip(rows, keys, strict=True)):
            url = self._urls[(p + self.run.rank) % len(self._urls)]
            request = request_of(self._names[url], row.tolist(), sampling, stops, group_size, seed)
            tasks.append(partial(self._ask, url, request, group_size, vocabulary))
            used.add(url)
        drawn = [one for group in self._calls.together(tasks) for one in group]
        # After, not before: a server that was started anew in between is seen as well.
        self._calls.together([partial(self._check_version, url) for url in sorted(used)])
        into = as_completions(drawn, sampling)
        rollout = _assembled(rows, group_size, into, self.lm.pad_token)
        return _moved(rollout, self.run.device)

    def _ask(
        self, url: str, request: dict[str, Any], group_size: int, vocabulary: int
    ) -> list[Drawn]:
        """Return one prompt's completions."""
        answer = self._calls.call(url, "/v1/completions", request, seconds=self.servers.seconds)
        try:
            return read_answer(answer, request, group_size, vocabulary)
        except ValueError as error:
            raise UsageError(f"{url} answered POST /v1/completions with {error}") from None

    # -- the servers -------------------------------------------------------------------------

    def _meet(self) -> None:
        """Ask each server what it serves; see that it can be given weights."""
        for url in self._urls:
            limit = max(self.servers.connect_seconds, 10.0)
            models = self._calls.call(url, "/v1/models", seconds=limit)
            try:
                first = models["data"][0]
                self._names[url], longest = str(first["id"]), first.get("max_model_len")
            except (KeyError, IndexError, TypeError, AttributeError):
                raise UsageError(f"{url} is no vLLM server; {_START}") from None
            if longest is not None:
                self._most = min(self._most or longest, int(longest))
            try:
                self._calls.call(url, "/weight_info", seconds=limit)
            except Refused as error:
                raise UsageError(
                    f"{url} cannot be given weights (GET /weight_info: HTTP {error.status}): it "
                    f"needs VLLM_SERVER_DEV_MODE=1 and a vLLM that has it; {_START}"
                ) from None


def write_weights(lm: LanguageModel, folder: Path) -> None:
    """Write a policy as an ordinary Hugging Face folder, adapters merged, whole or not at all.

    Raises:
        UsageError: It could not be written, for example because the disk is full.
    """
    with torch.no_grad():
        save_model(merge_adapters(lm).model, lm.tokenizer, folder)


def _moved(rollout: Rollout, device: torch.device) -> Rollout:
    def moved(x: Tensor) -> Tensor:
        return x.to(device)

    old = moved(rollout.old_log_probs)
    same = rollout.tempered_log_probs is rollout.old_log_probs
    return Rollout(
        tokens=moved(rollout.tokens),
        mask=moved(rollout.mask),
        old_log_probs=old,
        tempered_log_probs=old if same else moved(rollout.tempered_log_probs),
        finish_reasons=rollout.finish_reasons,
    )
