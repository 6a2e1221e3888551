"""The plotly.js that a report carries: a part of it, compressed, of the fitting version."""

import gzip
import hashlib
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["PlotlyBundle", "plotly_bundle"]

BUNDLE = Path(__file__).parent / "bundle"


@dataclass(frozen=True)
class PlotlyBundle:
    """A script that defines ``Plotly``.

    Args:
        version: Version of plotly.js.
        data: Its source, gzip in base64.
        sha256: Hash of the source, as a content security policy names it.
    """

    version: str
    data: str
    sha256: str


@cache
def plotly_bundle(folder: Path = BUNDLE) -> PlotlyBundle:
    """Return the bundle; all of plotly.js where none of the installed plotly's version is there.

    A figure is written for one version of plotly.js, so a bundle of another version is not used.

    Args:
        folder: Where ``bundle/build.py`` has put it.

    Returns:
        The bundle, 0.8 MB as text; 2 MB where it is all of plotly.js.
    """
    from plotly.offline import get_plotlyjs, get_plotlyjs_version

    version = str(get_plotlyjs_version())
    path = folder / f"plotly-{version}.min.js.gz"
    if path.is_file():
        compressed = path.read_bytes()
        source = gzip.decompress(compressed)
    else:
        source = str(get_plotlyjs()).encode()
        compressed = gzip.compress(source, compresslevel=9, mtime=0)
    return PlotlyBundle(version, b64encode(compressed).decode(), sha256_source(source))


def sha256_source(source: bytes) -> str:
    """Return the hash of a script as a content security policy names it."""
    return f"'sha256-{b64encode(hashlib.sha256(source).digest()).decode()}'"
