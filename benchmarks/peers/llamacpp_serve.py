"""llama.cpp's own HTTP server (PyPI `xllamacpp`) on one GGUF file, until it is told to end.

    python3 -m venv llama && llama/bin/pip install xllamacpp
    llama/bin/python llamacpp_serve.py --model MODEL.gguf --port 8080 --parallel 32 --ctx-size 16384

One slot for each request at once, with its share of the context; answered together (continuous
batching). Arguments are named as those of llama.cpp's own program, `llama-server`.
"""

from __future__ import annotations

import argparse
import os
import signal

import xllamacpp


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description="llama.cpp's own HTTP server.")
    add = parser.add_argument
    add("--model", required=True)
    add("--port", type=int, required=True)
    add("--parallel", type=int, default=1, help="requests at once")
    add("--ctx-size", type=int, default=2048, help="tokens of all of them")
    add("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = given.model
    params.hostnames, params.port = ["127.0.0.1"], given.port
    params.n_parallel, params.n_ctx = given.parallel, given.ctx_size
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
