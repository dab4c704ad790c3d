"""Settings of a run. Nothing here imports torch or an environment: a wrong value is refused before that is loaded."""

from rlhf_bilevel.config.schema import Config, Options

__all__ = ["Config", "Options"]
