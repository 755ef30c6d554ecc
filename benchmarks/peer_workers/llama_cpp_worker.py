"""llama.cpp as a peer, in its own virtual environment: ``python llama_cpp_worker.py FOLDER``, requests on stdin.

Install: ``CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_BLAS=OFF" pip install llama-cpp-python gguf`` (a quarter of an hour of compiling).
The GGUF is made of FOLDER's ``config.json`` and ``model.safetensors`` (``qwen2_gguf.py``). Set up as its documentation says: a
thread on every CPU the process may use, everything else at its default (keys and values float16). Batches go through
``llama_batch``, as in its server. Logits are float32 and the arg max is NumPy's. Requests: see ``peer_models.Worker``.
"""

import json
import os
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np
from qwen2_gguf import MAX_POSITIONS, write_gguf

MAX_SEQUENCES = 16


@llama_cpp.llama_log_callback
def quiet(level, text, user_data) -> None:
    """llama.cpp describes its graphs on stderr unless told otherwise."""


class Engine:
    """A model and one context with room for :data:`MAX_SEQUENCES` sequences."""

    def __init__(self, path: Path):
        llama_cpp.llama_log_set(quiet, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch = MAX_POSITIONS * 2, MAX_POSITIONS
        options.n_seq_max, options.kv_unified = MAX_SEQUENCES, True
        options.n_threads = options.n_threads_batch = len(os.sched_getaffinity(0))
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        assert self.model and self.context, f"{path} does not load"
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(MAX_POSITIONS, 0, 1)

    def forget(self) -> None:
        """Empty the cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def forward(self, ids: np.ndarray, start: int) -> np.ndarray:
        """ids [S, n] at positions from ``start`` → logits [S, V] of each sequence's last one."""
        sequences, length = ids.shape
        batch, self.batch.n_tokens = self.batch, ids.size
        for row, token in enumerate(ids.ravel().tolist()):
            batch.token[row], batch.pos[row] = token, start + row % length
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, row // length
            batch.logits[row] = row % length == length - 1
        status = llama_cpp.llama_decode(self.context, batch)
        assert status == 0, f"llama_decode: {status}"
        last = [s * length + length - 1 for s in range(sequences)]
        pointers = [llama_cpp.llama_get_logits_ith(self.context, row) for row in last]
        return np.stack([np.ctypeslib.as_array(p, (self.vocab_size,)) for p in pointers])

    def ids(self, sequences: int, length: int) -> np.ndarray:
        """The ids that every peer gets, [S, n]."""
        return (np.arange(sequences * length).reshape(sequences, length) * 7919 % (self.vocab_size - 1)) + 1

    def prefill(self, length: int) -> float:
        """Seconds for one prompt."""
        self.forget()
        ids = self.ids(1, length)
        return timed(lambda: self.forward(ids, 0))

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Seconds for ``steps`` steps behind a prompt that is not counted."""
        self.forget()
        self.forward(self.ids(batch, context), 0)

        def greedy() -> None:
            ids = self.ids(batch, 1)
            for i in range(steps):
                ids = self.forward(ids, context + i).argmax(-1)[:, None]

        return timed(greedy)


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def answer(**values: object) -> None:
    print(json.dumps({"peer": "llama_cpp"} | values), flush=True)


def main(folder: Path) -> None:
    write_gguf(folder, folder / "model.gguf")
    engine = Engine(folder / "model.gguf")
    answer(version=llama_cpp.__version__)
    for line in sys.stdin:
        request = json.loads(line)
        if "prompt" in request:
            engine.forget()
            engine.forward(np.array([request["prompt"]]), 0).astype(np.float32).tofile(folder / "logits")
            answer(logits=str(folder / "logits"))
        elif "prefill" in request:
            answer(seconds=engine.prefill(request["prefill"]))
        else:
            answer(seconds=engine.decode(request["batch"], request["context"], request["steps"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
