"""Tests of human."""
