"""The random states of a process, kept in a run so that its program can be started again alike."""

import random
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

__all__ = ["FILE_NAME", "restore_random_states", "save_random_states"]

FILE_NAME = "random_states.safetensors"


def save_random_states(run: Path) -> None:
    """Write the states of torch's, numpy's and Python's generators into a run folder.

    Args:
        run: The folder of the run.
    """
    _, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    _, python, python_gauss = random.getstate()
    arrays = {
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.asarray(words, dtype=np.uint32),
        "numpy_position": np.array([position, has_gauss], dtype=np.int64),
        "numpy_gauss": np.array([gauss], dtype=np.float64),
        "python": np.array(python, dtype=np.uint32),
        "python_gauss": np.array([] if python_gauss is None else [python_gauss], dtype=np.float64),
    }
    save_file(arrays, run / FILE_NAME)


def restore_random_states(run: Path) -> bool:
    """Set the generators to the states that a run holds; return whether it holds any.

    Args:
        run: The folder of the run.
    """
    if not (run / FILE_NAME).is_file():
        return False
    arrays = load_file(run / FILE_NAME)
    position, has_gauss = arrays["numpy_position"].tolist()
    gauss = float(arrays["numpy_gauss"][0])
    torch.set_rng_state(torch.from_numpy(arrays["torch"].copy()))
    np.random.set_state(("MT19937", arrays["numpy"], position, has_gauss, gauss))
    last = arrays["python_gauss"].tolist()
    random.setstate((3, tuple(arrays["python"].tolist()), last[0] if last else None))
    return True
