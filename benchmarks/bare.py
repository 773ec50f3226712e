"""The bare loop: a process a core trains its share of clients; nothing is averaged or sent."""

import sys
import time
from multiprocessing.connection import Connection

import torch
import torch.multiprocessing as mp

from benchmarks.contender import serve
from benchmarks.work import PROCESSES, WORKS, load, make_model, train


def worker(pipe: Connection, folder: str, name: str, share: int) -> None:
    torch.set_num_threads(1)
    x, y = load(folder, name)
    work = WORKS[name]
    model = make_model(work)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    while pipe.recv():
        for client in range(share, work.clients, PROCESSES):
            model.load_state_dict(start)
            train(model, x[client], y[client], work)
        pipe.send(True)


def main(name: str, folder: str) -> None:
    context = mp.get_context("spawn")
    pipes = []
    for share in range(PROCESSES):
        ours, theirs = context.Pipe()
        context.Process(target=worker, args=(theirs, folder, name, share), daemon=True).start()
        pipes.append(ours)

    def run() -> dict[str, float]:
        started = time.perf_counter()
        for pipe in pipes:
            pipe.send(True)
        for pipe in pipes:
            pipe.recv()
        return {"seconds": time.perf_counter() - started}

    run()
    serve(run)


if __name__ == "__main__":
    main(*sys.argv[1:])
