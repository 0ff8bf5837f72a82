"""setuptools has no declarative way to put a .pth file beside the modules."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPth(build_py):
    def run(self) -> None:
        super().run()
        self.copy_file("torchvision_cpu.pth", self.build_lib)


setup(py_modules=["torchvision_cpu"], cmdclass={"build_py": BuildWithPth})
