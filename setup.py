"""The build step that pyproject.toml cannot express: configs, tools, and the model index go into the package."""

import shutil
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
# Not ./build: modules that no longer exist would come back from there, and mim would find copies of the configs.
build_dir = tempfile.TemporaryDirectory(prefix='mmcasvit-build-')


class BuildPyWithConfigs(build_py):
    """Command that also copies configs, tools, and the model index to where mim and mmengine look for them.

    An editable install needs no copy: :func:`mmcasvit.apis.config.root` finds the folders of the repository.
    """

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, 'mmcasvit', '.mim')
        for folder in ('configs', 'tools'):
            shutil.copytree(HERE / folder, target / folder, ignore=shutil.ignore_patterns('__pycache__', '*.pyc', '.*'))
        shutil.copy(HERE / 'model-index.yml', target)


setup(cmdclass=dict(build_py=BuildPyWithConfigs), options=dict(build=dict(build_base=build_dir.name)))
