"""Everything but the list of packages is in pyproject.toml: `configs/` lies beside src and ships as hialign.configs."""

from setuptools import find_namespace_packages, find_packages, setup

groups = find_namespace_packages("configs", exclude=["*__pycache__*"])
setup(packages=[*find_packages("src"), "hialign.configs", *(f"hialign.configs.{group}" for group in groups)])
