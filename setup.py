"""Builds the C++ libraries with CMake; everything else about the package is in pyproject.toml.

Needs a C++20 compiler, cmake, ninja and pybind11. The op library is compiled against the headers of the torch
that is installed beside the package (its stable ABI, so one build serves every supported torch). Where no torch is
installed yet, only fastdetect._host is built, and the ops run on plain torch until the package is built again with
`pip install --no-build-isolation .`.

The CUDA op library is built where nvcc is found (no GPU is needed). Environment: FASTDETECT_CUDA=OFF leaves it out, ON
fails without nvcc; FASTDETECT_CUDA_ARCHITECTURES="90a;100" builds it for fewer GPUs, faster.
"""

import importlib.machinery
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def torch_dir() -> Path | None:
    """Folder of the installed torch, also from pip's isolated build environment, which hides site-packages."""
    paths = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    spec = importlib.machinery.PathFinder.find_spec("torch", paths)
    folder = Path(spec.origin).parent if spec and spec.origin else None
    return folder if folder and (folder / "include/torch/csrc/stable/library.h").is_file() else None


def tool(name: str) -> str:
    """Path of cmake or ninja: the pip package's beside this interpreter, or the system's."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        sys.exit(f"building fastdetect needs {name}: pip install {name}")
    return found


class CMakeExtension(Extension):
    def __init__(self) -> None:
        super().__init__("fastdetect._host", sources=[])


class CMakeBuild(build_ext):
    """Configures, builds in build/cmake-* (kept: a rebuild compiles only what changed) and installs."""

    def run(self) -> None:
        import pybind11

        torch = torch_dir()
        if torch is None:
            print(
                "fastdetect: no torch with stable-ABI headers (2.11 or later) is installed, so the op libraries "
                "are left out.\n  Install torch, then: pip install --no-build-isolation .",
                file=sys.stderr,
            )
        target = ROOT if self.inplace else Path(self.build_lib).resolve()
        folder = ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI')}"
        configure = [
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DCMAKE_INSTALL_PREFIX={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFASTDETECT_VERSION={self.distribution.get_version()}",
            f"-DFASTDETECT_TORCH_DIR={torch or ''}",
        ]
        cuda = os.environ.get("FASTDETECT_CUDA", "AUTO").upper()
        if cuda not in ("AUTO", "ON", "OFF"):
            sys.exit(f"FASTDETECT_CUDA: got {cuda!r}, want AUTO, ON or OFF")
        names = os.environ.get("FASTDETECT_CUDA_ARCHITECTURES")
        configure += [f"-DFASTDETECT_CUDA={cuda}"]
        configure += [f"-DFASTDETECT_CUDA_ARCHITECTURES={names}" if names else "-UFASTDETECT_CUDA_ARCHITECTURES"]
        cmake = tool("cmake")
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *configure], check=True)
        subprocess.run([cmake, "--build", str(folder), "--target", "install"], check=True)
        installed = (folder / "install_manifest.txt").read_text().splitlines()
        for library in (target / "fastdetect").glob("_ops_*.so"):
            if str(library) not in installed:  # of an earlier build with other options
                library.unlink()

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib) / "fastdetect"
        return [str(path) for path in folder.glob("_*.so")]


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(
    packages=[  # folders of data too: setuptools warns of data in a folder that is not one of them
        *find_namespace_packages(include=["fastdetect", "fastdetect.*"], exclude=["*.__pycache__"]),
        "fastdetect.kernels",
    ],
    package_dir={"fastdetect.kernels": "kernels"},
    ext_modules=[CMakeExtension()],
    cmdclass={"build_ext": CMakeBuild},
    distclass=BinaryDistribution,
)
