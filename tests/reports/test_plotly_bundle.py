import gzip
import hashlib
from base64 import b64decode, b64encode
from pathlib import Path

from plotly.offline import get_plotlyjs, get_plotlyjs_version

from analyzer.reports.html import BUNDLE, plotly_bundle
from analyzer.reports.paper_traces import DRAWERS


def test_the_bundle_is_of_the_version_that_plotly_writes_figures_for() -> None:
    (path,) = BUNDLE.glob("plotly-*.min.js.gz")
    version = get_plotlyjs_version()
    assert path.name == f"plotly-{version}.min.js.gz"
    assert f'"{version}"' in gzip.decompress(path.read_bytes()).decode()


def test_the_hash_in_the_policy_is_that_of_the_script_that_runs() -> None:
    bundle = plotly_bundle()
    source = gzip.decompress(b64decode(bundle.data))
    digest = b64encode(hashlib.sha256(source).digest()).decode()
    assert bundle.sha256 == f"'sha256-{digest}'"
    assert len(bundle.data) < 0.85e6


def test_the_bundle_has_every_trace_that_can_be_drawn_on_paper() -> None:
    entry = (BUNDLE / "entry.js").read_text()
    assert {kind for kind in DRAWERS if f"/lib/{kind}'" in entry} == set(DRAWERS) - {"scatter"}


def test_licenses_travel_with_the_bundle() -> None:
    source = gzip.decompress(b64decode(plotly_bundle().data)).decode()
    assert "Plotly" in source[:300] and "MIT License" in source[:300]
    assert "Permission is hereby granted" in source[:1500]


def test_without_a_bundle_all_of_plotly_is_used(tmp_path: Path) -> None:
    bundle = plotly_bundle(tmp_path)
    assert gzip.decompress(b64decode(bundle.data)).decode() == get_plotlyjs()
    assert bundle.version == get_plotlyjs_version()
