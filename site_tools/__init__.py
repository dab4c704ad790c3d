"""How the documentation is built and checked: pages that are generated, what is checked of those that are written."""
