"""Checks of a composed config before anything is built."""
