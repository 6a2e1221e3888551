"""The parts of the package that are compiled, where there is a compiler.

Recording computes its statistics in one pass with them; without them, numpy does it in several.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "analyzer.recording._scan",
            ["analyzer/recording/_scan.cpp"],
            extra_compile_args=["-O3", "-std=c++17", "-Wno-psabi"],
            optional=True,
        ),
        Extension(
            "analyzer.joins._products",
            ["analyzer/joins/_products.cpp"],
            extra_compile_args=["-O3", "-std=c++17"],
            optional=True,
        ),
    ]
)
