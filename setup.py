"""Metadata of the distribution gradex-select, imported as gradex."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "gradex/__init__.py").read_text())[1]

REQUIRES = [
    "torch>=2.8",  # models, gradients, projections
    "transformers>=5.20",  # base models, tokenizers, chat templates, the flags' parser
    "peft>=0.21",  # adapters and their file format
    "pytorch-optimizer>=4.1,<5",  # AdamP, SGDP and other optimizers
    "lightning>=2.6",  # training: devices, precision, strategies, checkpoints
    "traker>=0.3.2",  # trak's CUDA projection kernels (GPU engine, not used yet)
    "datasets>=4.0",  # saved and hub data sets; brings pyarrow for parquet
    "scikit-learn>=1.6",  # clusters of rows
    "numpy>=2.0",  # the store's arrays and the estimators' algebra
    "scipy>=1.13",  # ranks, linear programs, optimisers
    "joblib>=1.4",  # estimates over many processes (not used yet)
    "safetensors>=0.5",  # weights without pickles
    "matplotlib>=3.9",  # the report's figures
    "jinja2>=3.1",  # the report's page
    "pyyaml>=6.0",  # task files and configs
    "tqdm>=4.66",  # progress
    "xxhash>=3.4",  # content hashes of rows and weights
    "huggingface_hub>=1.0",  # model cards, data sets on the hub
    "jaxtyping>=0.3",  # shapes in annotations; checked in the tests
]
LOGGERS = ["tensorboard>=2.18", "wandb>=0.19"]  # for --report_to
DEV = [
    "beartype>=0.20",  # with jaxtyping: checks the shapes while the tests run
    "hypothesis>=6.100",  # laws on drawn inputs
    "ipykernel>=7.0",  # runs the notebooks' cells
    "nbclient>=0.10",  # and gives them to it
    "nbformat>=5.10",  # reads and checks notebooks
    "pytest>=8.3",
    "ruff>=0.9",  # format and lint
    "trl>=1.0",  # a trainer that reads what export writes
]

setup(
    name="gradex-select",
    version=VERSION,
    description="Choose the data sources a language model should be fine-tuned on",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["gradex", "gradex.*"]),
    package_data={
        "gradex": ["py.typed"],
        "gradex.data": ["demo_model/*"],
        "gradex.reporting": ["*.jinja", "*.css"],
    },
    install_requires=REQUIRES,
    extras_require={"dev": DEV, "loggers": LOGGERS},
    entry_points={"console_scripts": ["gradex = gradex.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
