"""All of setup.cfg, and the methods in ``baselines/``, which are installed as ``rlhf_bilevel.baselines``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["rlhf_bilevel*"]), "rlhf_bilevel.baselines"],
    package_dir={"rlhf_bilevel.baselines": "baselines"},
)
