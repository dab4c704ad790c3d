"""Methods by name. The only table of names: to add a method, write its file and one line here."""

from rlhf_bilevel.algorithm import Method
from rlhf_bilevel.baselines.hypergradient import HYPERGRADIENT
from rlhf_bilevel.baselines.incumbent import INCUMBENT
from rlhf_bilevel.baselines.mrn import MRN
from rlhf_bilevel.baselines.parl import PARL
from rlhf_bilevel.baselines.pebble import PEBBLE
from rlhf_bilevel.baselines.prefppo import PREFPPO
from rlhf_bilevel.baselines.qpa import QPA
from rlhf_bilevel.baselines.random import RANDOM
from rlhf_bilevel.baselines.rime import RIME
from rlhf_bilevel.baselines.rune import RUNE
from rlhf_bilevel.baselines.sac import SAC
from rlhf_bilevel.baselines.surf import SURF
from rlhf_bilevel.baselines.twin import TWIN
from rlhf_bilevel.baselines.unlabelled import UNLABELLED
from rlhf_bilevel.methods.detached import DETACHED
from rlhf_bilevel.methods.penalty import PENALTY

ALL = (
    PENALTY,
    INCUMBENT,
    TWIN,
    PEBBLE,
    SAC,
    SURF,
    RUNE,
    MRN,
    QPA,
    RIME,
    PARL,
    HYPERGRADIENT,
    DETACHED,
    PREFPPO,
    UNLABELLED,
    RANDOM,
)
METHODS: dict[str, Method] = {method.name: method for method in ALL}
