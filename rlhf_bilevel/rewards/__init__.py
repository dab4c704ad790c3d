"""The upper level's reward model: the ensemble, its loss, its health, and what it has learnt."""
