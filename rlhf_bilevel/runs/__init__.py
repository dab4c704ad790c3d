"""One run: what it is asked to be (``spec``), how it is built (``build``), what goes on around it (``session``)."""
