"""Tests mirror the package. Shapes are checked from the first import on."""

from tests.support import shapes as shapes
