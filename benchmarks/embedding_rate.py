"""Images a second of data_curation's reader beside a plain DataLoader loop: what bounds an embedding run.

    python benchmarks/embedding_rate.py ../shared/data/train/hq480-a --workers 2
    python benchmarks/embedding_rate.py folder --backbone alexnet --weights ../shared/iqa/alexnet_features.safetensors

Same images, same preprocessing, same encoder, same number of decoding processes, by turns in one run. Without a
backbone the encoder is one pooling and one matrix, which costs next to nothing: the decoders bound both. `bare` does in
the DataLoader what a notebook does, decode and resize; `same` also measures and hashes there what the records hold;
`decode` are as many processes that decode and measure the same without handing anything on: what there is to be had. On
a CPU the encoder takes its time from the decoders' cores, in every way; `its reader alone` shows the rate without it.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_curation.decode import decode
from data_curation.embed import embed_shard
from data_curation.encoders import Encoder, backbone_encoder
from data_curation.framing import Framing
from data_curation.reader import Reader
from image_data.sources import ImageFile, expand

BATCH = 16
FRAMING = Framing(224, 224, "shortest", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Files(Dataset[np.ndarray]):
    """What a plain loader decodes."""

    def __init__(self, images: list[ImageFile], encoder: Encoder, downscale: int, whole: bool) -> None:
        self.images, self.framing, self.downscale, self.whole = images, encoder.framing, downscale, whole

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        if self.whole:
            return decode(self.images[index], self.framing, self.downscale).pixels
        return np.ascontiguousarray(self.framing.apply(self.images[index].read_rgb()))


def tiny_encoder() -> Encoder:
    """The mean colours of a grid of 7x7 cells, mixed by one matrix."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(147, 64)).eval()
    return Encoder("tiny", "none", FRAMING, network, torch.device("cpu"), False, BATCH)


def by_reader(
    images: list[ImageFile], encoder: Encoder, downscale: int, workers: int, embed: bool
) -> Callable[[], int]:
    """This project's loop, its processes started; or its reader alone."""
    reader = Reader(encoder.framing, downscale, workers, 60, 4 * encoder.batch + workers)
    warm = images[:workers]
    reader.__enter__()
    outcomes = reader.read([*warm, *images])
    list(islice(outcomes, len(warm)))

    def loop() -> int:
        found = len(embed_shard(encoder, images, outcomes)[0]) if embed else sum(1 for _ in outcomes)
        reader.__exit__(None, None, None)
        return found

    return loop


def by_loader(
    images: list[ImageFile], encoder: Encoder, downscale: int, workers: int, whole: bool
) -> Callable[[], int]:
    """A plain DataLoader loop, its processes started."""
    data = Files([*images[: workers * BATCH], *images], encoder, downscale, whole)
    loader = DataLoader(data, encoder.batch, num_workers=workers, collate_fn=np.stack, prefetch_factor=4,
                        worker_init_fn=one_thread)  # fmt: skip
    batches = iter(loader)
    list(islice(batches, workers))

    def loop() -> int:
        return sum(len(encoder.embed(batch)) for batch in batches)

    return loop


def one_thread(_worker: int) -> None:
    """As in this project's workers: threads of OpenCV's beside as many processes would wait for one another."""
    cv2.setNumThreads(1)


def by_decoding(images: list[ImageFile], encoder: Encoder, downscale: int, workers: int) -> Callable[[], int]:
    """Processes that decode and hand nothing on."""
    context = multiprocessing.get_context("forkserver")
    pool = context.Pool(workers, one_thread, (0,))
    one = partial(decode_only, encoder.framing, downscale)
    pool.map(one, images[:workers], 1)

    def loop() -> int:
        with pool:
            return sum(pool.map(one, images, 1))

    return loop


def decode_only(framing: Framing, downscale: int, image: ImageFile) -> int:
    """1, the image decoded."""
    decode(image, framing, downscale)
    return 1


def main(argv: list[str] | None = None) -> None:
    """Measure by turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--count", type=int, default=600, help="images, repeated if there are fewer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--downscale", type=int, default=1)
    parser.add_argument("--backbone")
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = list(islice(cycle([image for word in args.images for image in expand(word)]), args.count))
    cpu = torch.device("cpu")
    encoder = backbone_encoder(args.backbone, args.weights, cpu, False, BATCH) if args.backbone else tiny_encoder()
    ways = {
        "data_curation.embed": lambda: by_reader(images, encoder, args.downscale, args.workers, True),
        "its reader alone": lambda: by_reader(images, encoder, args.downscale, args.workers, False),
        "DataLoader, same": lambda: by_loader(images, encoder, args.downscale, args.workers, True),
    }
    if args.downscale == 1:
        ways["DataLoader, bare"] = lambda: by_loader(images, encoder, 1, args.workers, False)
    ways["decode"] = lambda: by_decoding(images, encoder, args.downscale, args.workers)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way, prepare in ways.items():
            loop = prepare()
            since = time.monotonic()
            done = loop()
            rates[way].append(done / (time.monotonic() - since))
    print("| way | images/s, median | lowest | highest |\n|---|---|---|---|")
    for way, found in rates.items():
        print(f"| {way} | {statistics.median(found):.1f} | {min(found):.1f} | {max(found):.1f} |")


if __name__ == "__main__":
    main()
