"""Package metadata. The four top-level folders are mapped into the one import package ``hf_elm``."""

import re
from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).parent
FOLDERS = {"hf_elm": "hf_elm", "hf_elm.modeling": "modeling", "hf_elm.trainers": "trainers"}
FOLDERS |= {"hf_elm.model_cards": "model_cards", "hf_elm.recipe_files": "recipes"}

BASE = [
    "torch>=2.6",
    "transformers>=5.17,<6",
    "huggingface_hub>=1.0",
    "safetensors>=0.4.3",
    "omegaconf>=2.3",
    "rich>=13",
    "numpy>=1.26",
    "tqdm>=4.66",
    "jinja2>=3.1",
    "pyyaml>=6.0",
]
EXTRAS = {
    "train": ["accelerate>=1.1", "datasets>=3.0", "peft>=0.18", "torchdata>=0.11"],
    "flash": ["flash-attn>=2.7; platform_system == 'Linux'"],
    "kernels": ["kernels>=0.9"],
    "gguf": ["gguf>=0.10"],
    "eval": ["evaluate>=0.4", "lm-eval>=0.4.13", "datasets>=3.0", "scikit-learn>=1.3", "scipy>=1.10"],
    "plot": ["matplotlib>=3.8", "pillow>=10"],
    "retrieval": ["sentence-transformers>=5.2", "pyarrow>=15", "bm25s>=0.2"],
    "tracking": ["trackio>=0.2", "wandb>=0.18", "tensorboard>=2.17"],
    "tpu": ["torch-xla>=2.6; platform_system == 'Linux'"],
    "demo": ["gradio>=6.0", "matplotlib>=3.8", "pillow>=10"],
    "quant": ["torchao>=0.18; platform_system != 'Darwin'", "bitsandbytes>=0.45; platform_system == 'Linux'"],
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=0.30", "latex2mathml>=3.78"],
    "notebooks": ["nbclient>=0.10", "nbformat>=5.10", "ipykernel>=6.29"],
    "test": ["pytest>=8.0", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "tensorboard>=2.17"],
    "dev": ["ruff>=0.12", "build>=1.2"],
}


def packages() -> list[str]:
    """Every package of the mapped folders under its import name."""
    names = list(FOLDERS)
    for name, folder in FOLDERS.items():
        names += [f"{name}.{child}" for child in find_packages(str(HERE / folder))]
    return names


def version() -> str:
    """The version, written once in ``hf_elm/__init__.py``."""
    source = (HERE / "hf_elm" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE).group(1)


setup(
    name="hf_elm",
    version=version(),
    description="Energy-based language models for the Hugging Face ecosystem",
    long_description=(HERE / "README.md").read_text(encoding="utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir=FOLDERS,
    packages=packages(),
    package_data={
        "hf_elm.recipe_files": ["*.yaml", "accelerate/*.yaml", "slurm/*.sbatch", "skypilot/*.yaml"],
        "hf_elm.model_cards": ["*.md", "*.jinja"],
        "hf_elm.harness_tasks": ["*.yaml"],
        "hf_elm.metrics": ["elm_perplexity/*.py"],
    },
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["hf-elm = hf_elm.command_line:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
