"""One run: what it is asked to be (``spec``), how it is built (``build``), and all that goes on around it (``session``)."""
