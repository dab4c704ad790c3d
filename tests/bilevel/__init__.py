"""Tests of bilevel."""
