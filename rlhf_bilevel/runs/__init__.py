"""One run: what it is asked to be (``spec``), how it is built (``build``), its ``folder``, and what goes on around it
(``session``).
"""
