"""The shards of stage 1 shared out by Ray: `embed --ray ADDRESS` for a cluster, `--ray local` for this machine.

A task is one shard. It takes as many CPUs as it has decoding processes, and a GPU where the cluster has any; one that
dies with its process or its machine is repeated elsewhere. Only the program that starts them lists the images. All
machines have to see the images, the features folder and this repository under the same paths.
"""

import argparse
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray

from data_curation.embed.encoders import LOCAL_MODEL, Encoder
from data_curation.embed.shards import Done, embed_and_write, make_encoder
from data_curation.features import Settings
from image_data.sources import ImageFile

ROOT = Path(__file__).resolve().parents[2]
LOCAL = "local"
RETRIES = 3  # of a task whose process died; an error of its own is raised at once
WAITING = 2  # tasks handed over for each that can run: the names of a hundred million images are not sent at once


def embed_by_tasks(
    args: argparse.Namespace, settings: Settings, shards: Sequence[list[ImageFile]], todo: Sequence[int]
) -> Iterator[Done]:
    """Embed shards by Ray, and write each.

    Args:
        args: of the command; `ray` is the cluster's address, or `local`.
        settings: of the features folder.
        shards, todo: the images of all shards, and the numbers of those to do.

    Yields:
        What each shard took, in the order in which they are finished.

    Raises:
        RuntimeError: no such cluster, a cluster without enough CPUs on one machine, or a shard that failed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    check_reachable(args.ray)
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))}}
    try:
        ray.init(None if args.ray == LOCAL else args.ray, runtime_env=environment, include_dashboard=False
                 if args.ray == LOCAL else None, log_to_driver=False, logging_level="error")  # fmt: skip
    except ConnectionError as error:
        raise RuntimeError(f"no Ray cluster at {args.ray}: {error}") from error
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = int(args.device != "cpu" and any(machine.get("GPU", 0) for machine in machines))
        at_once = int(sum(min(machine.get("CPU", 0) // args.workers, machine.get("GPU", 0) if gpus else 1 << 30)
                          for machine in machines))  # fmt: skip
        if not at_once:
            raise RuntimeError(f"no machine of the cluster has {args.workers} CPUs: set --workers to fewer")
        args = with_absolute_paths(args)
        task = ray.remote(num_cpus=args.workers, num_gpus=gpus, max_retries=RETRIES)(_embed)
        left, running = list(reversed(todo)), set[ray.ObjectRef[Done]]()
        while left or running:
            while left and len(running) < WAITING * at_once:
                number = left.pop()
                running.add(task.remote(args, settings, number, shards[number]))
            for done in ray.wait(list(running))[0]:
                running.remove(done)
                try:
                    yield ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    raise RuntimeError(f"a shard's task died {RETRIES + 1} times: {error}") from error
    finally:
        ray.shutdown()


def with_absolute_paths(args: argparse.Namespace) -> argparse.Namespace:
    """The command's arguments for a process that was started in another folder."""
    argv = {**vars(args), "out": args.out.absolute()}
    if args.weights:
        argv["weights"] = args.weights.absolute()
    if args.model.startswith(LOCAL_MODEL):
        argv["model"] = LOCAL_MODEL + os.path.abspath(args.model.removeprefix(LOCAL_MODEL))
    if os.path.isfile(args.pretrained):
        argv["pretrained"] = os.path.abspath(args.pretrained)
    return argparse.Namespace(**argv)


def check_reachable(address: str) -> None:
    """Ray itself tries for minutes, and says little.

    Raises:
        RuntimeError: nobody listens at HOST:PORT or ray://HOST:PORT.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise RuntimeError(f"no Ray cluster at {address} ({error}): `ray start --head` makes one") from error


_opened: dict[str, Encoder] = {}  # of this process


def _embed(args: argparse.Namespace, settings: Settings, number: int, images: list[ImageFile]) -> Done:
    """The task. A process that is given several shards opens the encoder once."""
    since = time.monotonic()
    if settings.made not in _opened:
        _opened[settings.made] = make_encoder(args)
    read, unreadable = embed_and_write(_opened[settings.made], args, settings, number, images)
    return number, read, unreadable, time.monotonic() - since
