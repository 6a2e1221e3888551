"""The one part of the package that is compiled, where there is a compiler.

Recording computes its statistics in one pass with it; without it, numpy does it in several.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "analyzer.recording._scan",
            ["analyzer/recording/_scan.cpp"],
            extra_compile_args=["-O3", "-std=c++17", "-Wno-psabi"],
            optional=True,
        )
    ]
)
