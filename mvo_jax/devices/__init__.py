"""Devices and processes: the one room that knows how many there are."""
