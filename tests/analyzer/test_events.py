"""Event files for TensorBoard, by a decoder of our own; `tests/integrations` has the real one."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from analyzer.cli import main
from analyzer.recording.recorder import Recorder
from analyzer.storage.run import open_run
from tests.support.runs import layer_row, write_run


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit; ``crc32c(b"123456789")`` is the check value of RFC 3720's polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def records(data: bytes) -> Iterator[bytes]:
    while data:
        (length, check), data = struct.unpack("<QI", data[:12]), data[12:]
        assert check == masked(struct.pack("<Q", length))
        event, (check,), data = data[:length], struct.unpack_from("<I", data, length), data[length:]
        assert check == masked(event)
        yield event
        data = data[4:]


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and content of each field of a protobuf message."""

    def whole() -> int:
        nonlocal message
        value = shift = 0
        while True:
            byte, message = message[0], message[1:]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while message:
        number, kind = divmod(whole(), 8)
        if kind == 0:
            yield number, whole()
        else:
            size = {1: 8, 5: 4}.get(kind) or whole()
            content, message = message[:size], message[size:]
            form = {1: "<d", 5: "<f"}.get(kind)
            yield number, content if form is None else struct.unpack(form, content)[0]


def scalars(folder: Path) -> dict[str, list[tuple[float, int, float]]]:
    """Time, step and value by tag."""
    (path,) = folder.glob("*tfevents*")
    first, *others = records(path.read_bytes())
    assert dict(fields(first))[3] == b"brain.Event:2"
    found: dict[str, list[tuple[float, int, float]]] = {}
    for event in others:
        said = dict(fields(event))
        for number, value in fields(said[5]):
            assert number == 1
            parts = dict(fields(value))
            found.setdefault(parts[1].decode(), []).append((said[1], said[2], parts[2]))
    return found


def test_the_decoder_knows_the_checksum() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_every_number_of_a_run_is_a_scalar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "x" * 130
    norms: list[list[float | None]] = [[0.1, math.nan, None, 1e300]] + [[1.0] * 4] * 129
    rows = [layer_row(i, text) for i, text in enumerate(["a", "a#1", "b", name])]
    losses = [None, math.inf, *map(float, range(128))]
    run = write_run(tmp_path / "mine", losses, norms, layers=rows)
    out = tmp_path / "out"
    assert main(["export", str(run), "--format", "tensorboard", "-o", str(out)]) == 0
    found = scalars(out)
    assert f"{sum(map(len, found.values())):,} scalars" in capsys.readouterr().out
    table = open_run(run)
    loss = found["steps/loss"]
    assert [step for _, step, _ in loss] == list(range(1, 130))
    assert [value for *_, value in loss] == losses[1:]
    moment = table.read("steps", "time")["time"][5].as_py().timestamp()
    assert loss[4][0] == pytest.approx(moment, abs=1e-6)
    norm = {k: found[f"layer_stats.output_gradient_norm/{k}"] for k in ("a", "a#1", "b", name)}
    assert norm["a"][0][2] == pytest.approx(0.1, rel=1e-7)
    assert math.isnan(norm["a#1"][0][2])
    assert norm["b"][0][1] == 1  # null at step 0
    assert norm[name][0][2] == math.inf  # no float32 is as large
    assert {len(values) for values in norm.values()} == {129, 130}


def test_what_was_logged_and_joins_are_among_them(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.branch(x)

    model = nn.Sequential(nn.Linear(3, 3), Block())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with Recorder(model, tmp_path / "run") as recorder:
        for k in range(3):
            model(torch.ones(2, 3)).square().mean().backward()
            optimizer.step()
            recorder.log(**{"val/accuracy": k / 2, "word": "x", "epoch": k})
    run = str(tmp_path / "run")
    assert main(["export", run, "--format", "tensorboard", "-o", str(tmp_path / "out")]) == 0
    found = {tag: [v for *_, v in values] for tag, values in scalars(tmp_path / "out").items()}
    assert found["steps/val/accuracy"] == [0, 0.5, 1]
    assert found["steps/epoch"] == [0, 1, 2]
    table = open_run(run)
    shares = table.splits(columns=["shortcut_share"])["shortcut_share"]
    assert found["splits.shortcut_share/1"] == pytest.approx(shares.tolist())
    norms = table.parameter_stats("gradient_norm", parameters="1.branch.weight")
    assert found["parameter_stats.gradient_norm/1.branch.weight"] == pytest.approx(
        norms["gradient_norm"].tolist()
    )
    assert "steps/word" not in found
