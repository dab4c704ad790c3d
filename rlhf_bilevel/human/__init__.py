"""People as the teacher: the clips that they see, the label store that keeps their answers, and the label page."""
