"""One run: what is asked for (``spec``), how it is built (``build``), and what goes on around it (``session``)."""
