"""Time and memory of the spectrum of 54 joins, beside one forward and backward of all copies.

The 110-layer pre-activation net, 2 images of 32x32: the 55 lengths need as many gradients as 55
copies of the batch, so 110 images are the measure.
"""

import resource
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from analyzer.networks.zoo import zoo
from analyzer.probes.batch import HeldBatch
from analyzer.probes.paths import path_lengths

NUM_IMAGES, TIMES = 2, 5


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def peak_gib() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    model = zoo("resnet110-preact", in_channels=3, num_classes=10, image_size=32)
    x, y = torch.randn(NUM_IMAGES, 3, 32, 32), torch.randint(0, 10, (NUM_IMAGES,))
    batch = HeldBatch(model, x, y, cross_entropy)
    before = peak_gib()
    spectrum = path_lengths(batch)
    held = peak_gib() - before
    num_copies = len(spectrum.num_paths)
    stacked = x.repeat(num_copies, 1, 1, 1), y.repeat(num_copies)
    # Taken in turns, so that a busy machine slows both.
    ours, theirs = [], []
    for _ in range(TIMES):
        ours.append(seconds(lambda: path_lengths(batch)))
        theirs.append(seconds(lambda: cross_entropy(model(stacked[0]), stacked[1]).backward()))
    print(f"{num_copies - 1} joins, {sum(spectrum.num_paths):.2g} paths")
    print(f"effective path length {spectrum.effective_path_length:.1f}")
    print(f"spectrum              {min(ours):6.2f} s, {held:.2f} GiB more than before")
    print(
        f"{num_copies * NUM_IMAGES} images              {min(theirs):6.2f} s forward and backward"
    )
    print(f"ratio                 {min(ours) / min(theirs):6.2f}")
    print(f"error of the sum rule {spectrum.sum_error:.1e}")


if __name__ == "__main__":
    main()
