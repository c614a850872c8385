"""Installs the package `bevfusion_enhanced` from `projects/`.

Beside the package goes a one-line `.pth` file, so that MMDetection3D's own scripts, which import
mmcv's operators before they read a config, also run where mmcv has none (mmcv-lite).
mmcv itself is not required here: `pip install -e .` leaves a compiled mmcv alone, and the extra
`lite` (`pip install -e .[lite]`) brings mmcv-lite to an environment that has neither.
"""
from pathlib import Path

from setuptools import Distribution, find_packages, setup  # before distutils, which it provides
from distutils.command.install_data import install_data  # isort: skip

ROOT = Path(__file__).parent


def requirements(name: str) -> list:
    """The requirement lines of requirements/NAME.in."""
    lines = (ROOT / 'requirements' / f'{name}.in').read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith(('#', '-r'))]


class DistributionWithData(Distribution):
    """Setuptools' editable install asks for `has_data`, distutils named it `has_data_files`."""

    def has_data(self) -> bool:
        return self.has_data_files()


class InstallDataIntoLibrary(install_data):
    """Puts data files where the packages go: a `.pth` file counts only in site-packages."""

    def finalize_options(self) -> None:
        self.set_undefined_options('install', ('install_lib', 'install_dir'), ('root', 'root'),
                                   ('force', 'force'))


version = (ROOT / 'projects/bevfusion_enhanced/__init__.py').read_text()
setup(
    name='bevfusion_enhanced',
    version=version.split("__version__ = '")[1].split("'")[0],
    description='Joint 3D detection and BEV map segmentation for MMDetection3D, '
                'with checkpoints that survive a change of architecture',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10,<3.13',
    package_dir={'': 'projects'},
    packages=find_packages('projects'),
    py_modules=['bevfusion_enhanced_mmcv_finder'],
    data_files=[('', ['requirements/bevfusion_enhanced_mmcv_finder.pth'])],
    install_requires=requirements('runtime'),
    extras_require={'lite': requirements('lite'), 'tests': requirements('tests')},
    distclass=DistributionWithData,
    cmdclass={'install_data': InstallDataIntoLibrary},
    zip_safe=False,
)
