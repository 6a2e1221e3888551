import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from analyzer.errors import AnalyzerError
from analyzer.networks.data import batches, dataset, synthetic

FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def write_cifar(folder: Path, samples: int = 4) -> np.ndarray:
    """Write six small files of CIFAR-10's layout; return the training images."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, samples, 3072), dtype=np.uint8)
    for name, data in zip(FILES, images, strict=True):
        content = {b"data": data, b"labels": list(range(samples))}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return images[:5].reshape(-1, 3, 32, 32)


def test_digits_are_all_there_once() -> None:
    data = dataset("digits")
    images, classes = load_digits(return_X_y=True)
    assert (len(data.train_inputs), len(data.test_inputs)) == (1438, 359)
    assert (data.shape, data.num_classes) == ((1, 8, 8), 10)
    counts = torch.cat([data.train_targets, data.test_targets]).bincount()
    assert counts.tolist() == np.bincount(classes).tolist()
    inputs = torch.cat([data.train_inputs, data.test_inputs]).double()
    blank = inputs.min()  # a pixel of value 0
    scale = images.sum() / (inputs - blank).sum()
    assert ((inputs - blank) * scale).sum(dim=(1, 2, 3)).sort()[0].numpy() == pytest.approx(
        np.sort(images.sum(axis=1)), rel=1e-4
    )


def test_inputs_have_mean_0_and_deviation_1_over_the_training_part() -> None:
    data = dataset("digits")
    assert data.train_inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train_inputs.std().item() == pytest.approx(1, rel=1e-4)


def test_the_split_of_digits_is_the_same_for_every_seed() -> None:
    assert torch.equal(dataset("digits").test_inputs, dataset("digits", seed=1).test_inputs)


def test_synthetic_classes_are_told_apart_by_the_nearest_mean() -> None:
    data = synthetic((2, 5, 5), num_classes=4, seed=3)
    means = torch.stack([data.train_inputs[data.train_targets == c].mean(0) for c in range(4)])
    nearest = torch.cdist(data.test_inputs.flatten(1), means.flatten(1)).argmin(dim=1)
    assert (nearest == data.test_targets).double().mean() > 0.95


def test_synthetic_data_follow_their_seed_and_shape() -> None:
    one, same, other = (dataset("synthetic:1x4x6", seed=seed) for seed in (1, 1, 2))
    assert one.shape == (1, 4, 6)
    assert torch.equal(one.train_inputs, same.train_inputs)
    assert not torch.equal(one.train_inputs, other.train_inputs)


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-py"])
def test_cifar_is_read_and_standardized_by_channel(tmp_path: Path, inner: str) -> None:
    images = write_cifar(tmp_path / inner)
    data = dataset(f"cifar10:{tmp_path}")
    assert (data.name, data.shape, len(data.test_inputs)) == ("cifar10", (3, 32, 32), 4)
    assert data.train_targets.tolist() == [0, 1, 2, 3] * 5
    mean, deviation = images.mean((0, 2, 3)), images.std((0, 2, 3))
    expected = (images - mean[:, None, None]) / deviation[:, None, None]
    assert data.train_inputs.numpy() == pytest.approx(expected, abs=1e-3)


def test_a_folder_without_cifar_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(AnalyzerError, match=r"lacks data_batch_3; looked for data_batch_1 to 5"):
        dataset(f"cifar10:{tmp_path}")


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("evil"),))


def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(
        AnalyzerError, match=r"not a CIFAR-10 batch \(it refers to .*expected a pic"
    ):
        dataset(f"cifar10:{tmp_path}")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("damaged", [b"", b"text", pickle.dumps({b"data": 3}), pickle.dumps([1])])
def test_a_damaged_file_is_refused(tmp_path: Path, damaged: bytes) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(damaged)
    with pytest.raises(AnalyzerError, match=r"data_batch_1' is not a CIFAR-10 batch"):
        dataset(f"cifar10:{tmp_path}")


@pytest.mark.parametrize("name", ["mnist", "digits:x", "cifar10", "cifar10:"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(AnalyzerError, match=rf"data '{name}' is unknown; expected digits, synth"):
        dataset(name)


@pytest.mark.parametrize("shape", ["3", "3x0x3", "axbxc"])
def test_a_shape_that_is_none_is_refused(shape: str) -> None:
    with pytest.raises(AnalyzerError, match=rf"'{shape}' is not a shape; expected CxHxW"):
        dataset(f"synthetic:{shape}")


def test_an_epoch_gives_every_sample_at_most_once_and_epochs_differ() -> None:
    data = synthetic((1, 2, 2), samples=50)
    seen: list[list[tuple[float, ...]]] = [[], []]
    source = batches(data, 12)
    for inputs, targets in islice(source, 6):
        assert (len(inputs), len(targets)) == (12, 12)
        seen[source.epoch] += [tuple(row) for row in inputs.flatten(1).tolist()]
    assert [len(rows) for rows in seen] == [len(set(rows)) for rows in seen] == [36, 36]
    assert seen[0] != seen[1]


def test_targets_stay_with_their_inputs() -> None:
    data = dataset("digits")
    inputs, targets = next(batches(data, 64))
    rows = (inputs[:, None] == data.train_inputs[None]).all(dim=(2, 3, 4)).int().argmax(dim=1)
    assert torch.equal(data.train_targets[rows], targets)


def test_batches_follow_their_seed_never_end_and_leave_the_global_state() -> None:
    data = synthetic((1, 2, 2), samples=20)
    before = torch.get_rng_state()
    one, same, other = (batches(data, 8, seed=seed) for seed in (1, 1, 2))
    drawn = [[next(source)[0] for _ in range(6)] for source in (one, same, other)]
    assert one.epoch == 2
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.cat(drawn[0]), torch.cat(drawn[1]))
    assert not torch.equal(torch.cat(drawn[0]), torch.cat(drawn[2]))


@pytest.mark.parametrize("batch_size", [0, 17])
def test_a_batch_that_the_data_do_not_fill_is_refused(batch_size: int) -> None:
    data = synthetic((1, 2, 2), samples=20)
    with pytest.raises(
        AnalyzerError, match=f"batch size {batch_size} does not fit the 16 training"
    ):
        batches(data, batch_size)
