"""Unit tests of the app room."""
