"""Tests mirror the package. With SHAPES=1, shapes are checked from the first import on."""

from tests.support import shapes as shapes
