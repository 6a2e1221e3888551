"""What a measured time leaves out."""

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave out of a time what is not the recorder's: coverage, and the objects of other tests.

    Coverage traces each line of the recorder and none of torch; the garbage collector would look
    through all that a worker has kept from earlier tests.
    """
    here, threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        threading.settrace(threads)
        sys.settrace(here)
