"""Ship ``configs/`` inside the package: a wheel has it as ``foundation/configs``, a clone at its root."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copy the YAML files beside the modules, except for an editable install, which reads them from the clone."""

    def run(self) -> None:
        """Build the modules, then copy."""
        super().run()
        if not self.editable_mode:
            source = Path(__file__).resolve().parent / "configs"
            shutil.copytree(source, Path(self.build_lib) / "foundation" / "configs", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
