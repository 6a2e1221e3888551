"""Builds the bundle at release: ``python reports/bundle/build.py``; needs node and npm.

The version is that which the installed plotly writes figures for. What is made here is committed,
so that neither users nor tests need node.
"""

import gzip
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["build"]

HERE = Path(__file__).parent
ESBUILD = "0.25.0"


def build(version: str, folder: Path = HERE) -> Path:
    """Bundle plotly.js with the traces of ``entry.js`` and compress it.

    Args:
        version: Version of plotly.js, such as ``4.1.1``.
        folder: Where the file goes; bundles of other versions there are removed.

    Returns:
        The file ``plotly-<version>.min.js.gz``; equal input gives equal bytes. The licenses of
        everything in it stand at its end.

    Raises:
        subprocess.CalledProcessError: If npm or esbuild fails; what it said is on stderr.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "entry.js").write_text((HERE / "entry.js").read_text(encoding="utf-8"))
        (work / "package.json").write_text("{}")
        packages = [f"plotly.js@{version}", f"esbuild@{ESBUILD}"]
        install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *packages]
        subprocess.run(install, cwd=work, check=True)
        bundle = ["npx", "esbuild", "entry.js", "--bundle", "--minify", "--format=iife"]
        bundle += ["--global-name=Plotly", "--define:global=window", "--charset=utf8"]
        bundle += ["--legal-comments=eof", "--log-level=error", "--outfile=out.js"]
        subprocess.run(bundle, cwd=work, check=True)
        license_text = (work / "node_modules" / "plotly.js" / "LICENSE").read_text(encoding="utf-8")
        notice = f"/*! plotly.js v{version}, a part of it\n{license_text.strip()}\n*/\n"
        source = notice.encode() + (work / "out.js").read_bytes()
    for old in folder.glob("plotly-*.min.js.gz"):
        old.unlink()
    path = folder / f"plotly-{version}.min.js.gz"
    path.write_bytes(gzip.compress(source, compresslevel=9, mtime=0))
    return path


if __name__ == "__main__":
    from plotly.offline import get_plotlyjs_version

    made = build(get_plotlyjs_version())
    print(f"{made.name}: {made.stat().st_size:,} bytes", file=sys.stderr)
