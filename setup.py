"""The packages, and the parts that are compiled where there is a compiler.

Recording computes its statistics in one pass with them; without them, numpy does it in several.
"""

from setuptools import Extension, find_packages, setup

# `dashboard` and `reports` are folders of their own, but not import names of their own: a user's
# dashboard.py or reports/ must neither hide ours nor be hidden by it.
PARTS = ("dashboard", "reports")

setup(
    packages=[
        *find_packages(include=["analyzer", "analyzer.*"]),
        *(
            f"analyzer.{name}"
            for part in PARTS
            for name in find_packages(include=[part, f"{part}.*"])
        ),
    ],
    package_dir={f"analyzer.{part}": part for part in PARTS},
    package_data={
        "analyzer": ["py.typed"],
        "analyzer.lesson": ["data/*.parquet", "templates/*"],
        "analyzer.dashboard": ["assets/*"],
        "analyzer.reports": ["templates/*", "bundle/*.gz", "bundle/entry.js"],
        "analyzer.vocabulary": ["*.bib"],
    },
    ext_modules=[
        Extension(
            "analyzer.recording._scan",
            [f"analyzer/recording/_{part}.cpp" for part in ("scan", "passes", "hooks")],
            depends=["analyzer/recording/_scan.h"],
            extra_compile_args=["-O3", "-g0", "-std=c++17", "-Wno-psabi"],
            optional=True,
        ),
        Extension(
            "analyzer.joins._products",
            ["analyzer/joins/_products.cpp"],
            extra_compile_args=["-O3", "-g0", "-std=c++17"],
            optional=True,
        ),
    ],
)
